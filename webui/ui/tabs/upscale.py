"""upscale: pictures enlarged, one, several or a folder, with a slider between before and after.

And an offer to fetch one more upscaler.
"""

from __future__ import annotations

import html
import io
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

import gradio as gr
from PIL import Image, ImageOps

from webui.core import catalogue
from webui.core.errors import InvalidRequest, NotAllowed
from webui.core.ports import ModelCatalogue, ModelOffer, OfferStatus
from webui.core.requests import DiffusionUpscaler, FaceRestoration, Request, Upscale
from webui.gallery import open_picture, png_bytes, read_infotext
from webui.jobs.views import JobView
from webui.ui import memory, pictures
from webui.ui.components.folder_batch import add_folder_batch
from webui.ui.components.form import Form
from webui.ui.components.job_panel import (
    ResultPanel,
    RunButtons,
    add_result_panel,
    add_run_buttons,
    restore_picture,
    wire_job_panel,
)
from webui.ui.components.parameters import parameters_html
from webui.ui.components.picture_input import picture_input
from webui.ui.components.studio import Header, Studio
from webui.ui.kinds import number, text, whole
from webui.ui.reading import FormValues
from webui.ui.services import Services
from webui.ui.toasts import guarded
from webui.ui.visitors import is_at_this_machine

ONE, SEVERAL, FOLDER = "One picture", "Several", "Folder"

_DEFAULTS = Upscale(image=b"")
_FIRST_CHOICE = "realesr-animevideov3-x4"  # of what is shipped, the one that a machine without a GPU runs in seconds
_NONE = ("None", "")


def first_upscaler(names: Sequence[str]) -> str:
    """The upscaler that a fresh form shows: the quick network that is shipped, or else the first of `names`."""
    return _FIRST_CHOICE if _FIRST_CHOICE in names else names[0]


def add_upscale_fields(form: Form, models: ModelCatalogue) -> tuple[gr.Column, gr.Column]:
    """Adds every setting; returns the columns of face restoration and of diffusion upscalers, which may be hidden."""
    names = tuple(models.upscalers())
    form.choice("upscaler", "Upscaler", first_upscaler(names), names, f"{form.tab}_upscaler_1")
    form.slider("scale", "Scale", _DEFAULTS.scale, catalogue.SCALE_RANGE, 0.05)
    with gr.Row(elem_classes="fields"):
        form.number("width", "Width (0 = by scale)", _DEFAULTS.width, step=8)
        form.number("height", "Height (0 = by scale)", _DEFAULTS.height, step=8)
    form.fields["crop"] = gr.Checkbox(
        _DEFAULTS.crop, label="Crop to this width and height, else fit into them", elem_id=f"{form.tab}_crop"
    )
    with gr.Row(elem_classes="fields"):
        form.fields["upscaler_2"] = gr.Dropdown(
            [_NONE, *names], value="", label="Second upscaler", elem_id=f"{form.tab}_upscaler_2", min_width=150
        )
        form.slider("upscaler_2_visibility", "Visibility", _DEFAULTS.upscaler_2_visibility, (0, 1), 0.05)
    with gr.Row(elem_classes="fields"):
        form.number("tile", "Tile (pixels, 0 = whole)", _DEFAULTS.tile, step=32)
        form.number("overlap", "Tile overlap (pixels)", _DEFAULTS.overlap, step=4)
    return _add_faces(form, models.face_restorers()), _add_diffusion(form, diffusion_upscalers(models))


def _add_faces(form: Form, restorers: Sequence[str]) -> gr.Column:
    faces = _DEFAULTS.faces
    with gr.Column(visible=bool(restorers), elem_id=f"{form.tab}_faces", elem_classes="fields-group") as column:
        form.fields["faces.model"] = gr.Dropdown(
            [_NONE, *restorers], value="", label="Restore faces with", elem_id=f"{form.tab}_face_restorer"
        )
        with gr.Row(elem_classes="fields"):
            form.slider("faces.visibility", "Visibility", faces.visibility, (0, 1), 0.05)
            form.slider("faces.weight", "CodeFormer weight (1 = faithful)", faces.weight, (0, 1), 0.05)
    return column


def _add_diffusion(form: Form, names: Set[str]) -> gr.Column:
    fresh = _DEFAULTS.diffusion
    first = str(form.fields["upscaler"].value)
    with gr.Column(visible=first in names, elem_id=f"{form.tab}_diffusion", elem_classes="fields-group") as column:
        for name, label in (("prompt", "What the picture shows"), ("negative_prompt", "What it does not show")):
            form.fields[f"diffusion.{name}"] = gr.Textbox(
                getattr(fresh, name), label=label, elem_id=f"{form.tab}_diffusion_{name}"
            )
        with gr.Row(elem_classes="fields"):
            form.slider("diffusion.steps", "Steps", fresh.steps, catalogue.STEPS_RANGE, 1)
            form.slider("diffusion.cfg_scale", "CFG scale", fresh.cfg_scale, catalogue.CFG_SCALE_RANGE, 0.5)
        with gr.Row(elem_classes="fields"):
            form.slider("diffusion.noise_level", "Noise level", fresh.noise_level, catalogue.NOISE_LEVEL_RANGE, 1)
            form.number("diffusion.seed", "Seed", fresh.seed)
    return column


def diffusion_upscalers(models: ModelCatalogue) -> frozenset[str]:
    """The upscalers that are diffusion models: those that lie among the checkpoints."""
    return frozenset(models.upscalers()) & {info.name for info in models.checkpoints()}


def before_after(tab: str) -> gr.ImageSlider:
    """The slider between the picture that went in and the one that came out."""
    return gr.ImageSlider(
        label="Before and after",
        show_label=False,
        type="filepath",
        format="png",
        interactive=False,
        elem_id=f"{tab}_gallery",
        elem_classes=["results", "before-after"],
        max_height=720,
        buttons=["download", "fullscreen"],
    )


def before_after_value(view: JobView) -> tuple[Image.Image, str]:
    """The two pictures of a finished job, the smaller one enlarged pixel by pixel so that they lie on each other."""
    request = view.request
    if not isinstance(request, Upscale):
        raise TypeError(f"a before-after slider shows upscaled pictures, not {view.task}")
    after = pictures.shown(view.images[0].path)
    with Image.open(after) as made, Image.open(io.BytesIO(request.image)) as given:
        before = given.convert("RGB")
        if request.width and request.height and request.crop:
            return ImageOps.fit(before, made.size, Image.Resampling.NEAREST), after
        return before.resize(made.size, Image.Resampling.NEAREST), after


def upscale_request(values: FormValues, image: bytes) -> Upscale:
    """The request that the form and its picture (PNG) stand for; raises `InvalidRequest`."""
    return Upscale(
        image=image,
        upscaler=text(values.get("upscaler")),
        scale=number("Scale", values.get("scale")),
        width=whole("Target width", values.get("width")),
        height=whole("Target height", values.get("height")),
        crop=values.get("crop") is True,
        upscaler_2=text(values.get("upscaler_2")),
        upscaler_2_visibility=number("Visibility of the second upscaler", values.get("upscaler_2_visibility")),
        tile=whole("Tile size", values.get("tile")),
        overlap=whole("Tile overlap", values.get("overlap")),
        faces=FaceRestoration(
            model=text(values.get("faces.model")),
            visibility=number("Visibility of restored faces", values.get("faces.visibility")),
            weight=number("CodeFormer weight", values.get("faces.weight")),
        ),
        diffusion=DiffusionUpscaler(
            prompt=text(values.get("diffusion.prompt")),
            negative_prompt=text(values.get("diffusion.negative_prompt")),
            steps=whole("Upscaler steps", values.get("diffusion.steps")),
            cfg_scale=number("Upscaler CFG scale", values.get("diffusion.cfg_scale")),
            noise_level=whole("Upscaler noise level", values.get("diffusion.noise_level")),
            seed=whole("Upscaler seed", values.get("diffusion.seed")),
        ),
    )


def uploads(mode: str, picture: object, files: object) -> list[Any]:
    """The uploads that are meant: the picture, or the files; raises `InvalidRequest` where there are none."""
    given = [picture] if mode != SEVERAL else list(files) if isinstance(files, Sequence) else []
    found = [upload for upload in given if pictures.uploaded_path(upload) is not None]
    if not found:
        raise InvalidRequest(
            f"There is no picture to upscale; add {'some' if mode == SEVERAL else 'one'} and try again."
        )
    return found


def uploaded_with_infotext(upload: object, max_pixels: int) -> bytes:
    """An upload as PNG bytes, upright, with the infotext that it carries, for the upscaled one goes on with it."""
    path = pictures.uploaded_path(upload)
    if path is None:
        raise InvalidRequest("There is no picture to upscale; add one and try again.")
    return png_bytes(open_picture(path, max_pixels), read_infotext(path, max_pixels) or "")


def add_offer(offer: ModelOffer) -> tuple[gr.Button, gr.HTML]:
    """The button that fetches what is on offer, hidden until it is known who looks, and what is said about it."""
    with gr.Row(elem_classes="fields"):
        get = gr.Button(
            f"Get {offer.title} ({offer.megabytes} MB)", size="sm", elem_id="upscale_get_model", visible=False
        )
    return get, gr.HTML("", elem_id="upscale_offer", visible=False)


def offer_note(status: OfferStatus) -> str:
    """What is said about the offer beneath its button, escaped; "" while there is nothing to say."""
    if not status.detail:
        return ""
    kind = "class='extension-error' role='alert'" if status.phase == "failed" else "class='note' role='status'"
    return f"<p {kind}>{html.escape(status.detail)}</p>"


def build_upscale(page: gr.Blocks, services: Services, header: Header) -> Studio:
    """Fills the tab."""
    form = Form(tab="upscale")
    with gr.Row(elem_classes=["studio", "studio-upscale"]):
        with gr.Column(elem_classes="studio-ask") as ask:
            form.radio("mode", "What to upscale", ONE, (ONE, SEVERAL, FOLDER))
            # Which of these is seen follows from the mode (assets/atelier.css).
            picture = picture_input("upscale", "Picture to enlarge")
            files = gr.File(
                label="Pictures to enlarge",
                file_count="multiple",
                file_types=["image"],
                elem_id="upscale_files",
                elem_classes="picture-input",
            )
            run = add_run_buttons("upscale", "Upscale")
        with gr.Column(elem_classes="studio-picture"):
            result = add_result_panel("upscale", before_after, before_after_value)
            several = gr.Gallery(
                show_label=False,
                visible=False,
                elem_id="upscale_several",
                elem_classes="recent",
                object_fit="cover",
                height="auto",
                allow_preview=False,
                interactive=False,
            )
        with gr.Column(elem_classes="studio-settings") as settings:
            faces, diffusion = add_upscale_fields(form, services.catalogue)
            get, note = add_offer(services.upscaler_offer)
    with ask, gr.Column(elem_id="upscale_folder", elem_classes="fields-group"):
        add_folder_batch(
            page,
            services,
            tab="upscale",
            inputs=form.components,
            make_request=lambda *values: upscale_request(form.values(values), b""),
        )
    memory.remember_form(page, form)
    _keep_menus_fresh(page, services, form, header.refresh, faces)
    _follow_upscaler(services, form, diffusion)
    wire_offer(page, services, form, get, note)
    ids = _wire_jobs(page, services, header, form, run, result, [picture, files])
    restore_picture(page, services, ids, picture, _given)
    _wire_several(services, ids, result, several)
    return Studio(header=header, form=form, run=run, result=result, picture=picture, settings=settings)


def _wire_jobs(
    page: gr.Blocks,
    services: Services,
    header: Header,
    form: Form,
    run: RunButtons,
    result: ResultPanel,
    inputs: Sequence[Any],
) -> gr.BrowserState:
    def make_requests(image: Any, several: Any, *values: Any) -> list[Upscale]:
        held = form.values(values)
        most = services.settings.current.max_image_pixels
        return [
            upscale_request(held, uploaded_with_infotext(upload, most))
            for upload in uploads(text(held.get("mode")), image, several)
        ]

    return wire_job_panel(
        page,
        services,
        tab="upscale",
        run=run,
        result=result,
        status=header.status,
        inputs=[*inputs, *form.components],
        make_request=make_requests,
    )


def _wire_several(services: Services, ids: gr.BrowserState, result: ResultPanel, several: gr.Gallery) -> None:
    """Of several pictures, each that is done can be looked at."""
    jobs = services.jobs

    def done(stored: object) -> list[JobView]:
        views = (jobs.view(job_id) for job_id in memory.job_ids(stored))
        return [view for view in views if view is not None and view.images and view.images[0].path.is_file()]

    def show(stored: object) -> gr.Gallery:
        views = done(stored)
        paths = [pictures.shown(view.images[0].path) for view in views] if len(views) > 1 else []
        return gr.Gallery(value=paths, visible=bool(paths))

    def select(stored: object, event: gr.SelectData) -> list[Any]:
        views = done(stored)
        if not 0 <= event.index < len(views):
            return [gr.skip()] * 3
        view = views[event.index]
        return [result.display_value(view), parameters_html(view.images[0].infotext), {"job": view.id, "index": 0}]

    quietly: dict[str, Any] = {"inputs": [ids], "show_progress": "hidden"}
    result.shown.change(guarded(show), outputs=[several], **quietly)
    several.select(guarded(select), outputs=[result.display, result.parameters, result.shown], **quietly)


def _keep_menus_fresh(page: gr.Blocks, services: Services, form: Form, refresh: gr.Button, faces: gr.Column) -> None:
    """The menus of a page that is loaded hold what lies in the models folder then, not what did at the start."""
    stored = memory.browser_state("upscale.form", {})
    names = ("upscaler", "upscaler_2", "faces.model")
    outputs = [*(form.fields[name] for name in names), faces]

    def renewed(first: Any, second: Any, restorer: Any) -> list[Any]:
        upscalers, restorers = services.catalogue.upscalers(), services.catalogue.face_restorers()
        return [
            gr.Dropdown(choices=list(upscalers), value=first if first in upscalers else first_upscaler(upscalers)),
            _optional_menu(upscalers, second),
            _optional_menu(restorers, restorer),
            gr.Column(visible=bool(restorers)),
        ]

    def restored(values: object) -> list[Any]:
        return renewed(*(values.get(name) if isinstance(values, Mapping) else None for name in names))

    quietly: dict[str, Any] = {"outputs": outputs, "show_progress": "hidden", "preprocess": False}
    page.load(guarded(restored), inputs=[stored], queue=False, **quietly)
    refresh.click(guarded(renewed), inputs=outputs[:-1], **quietly)


def _optional_menu(names: Sequence[str], wanted: Any) -> gr.Dropdown:
    choices = [_NONE, *((name, name) for name in names)]
    return gr.Dropdown(choices=choices, value=wanted if wanted in names else "")


def _follow_upscaler(services: Services, form: Form, diffusion: gr.Column) -> None:
    """The settings of diffusion upscalers are there while one is chosen."""
    menus = [form.fields["upscaler"], form.fields["upscaler_2"]]

    def follow(*chosen: object) -> gr.Column:
        return gr.Column(visible=not diffusion_upscalers(services.catalogue).isdisjoint(chosen))

    gr.on(
        [menu.change for menu in menus],  # pyright: ignore[reportAttributeAccessIssue] # menus have one
        guarded(follow),
        inputs=menus,
        outputs=[diffusion],
        show_progress="hidden",
        preprocess=False,
        queue=False,
    )


def wire_offer(page: gr.Blocks, services: Services, form: Form, get: gr.Button, note: gr.HTML) -> None:
    """Only who may install extensions is shown the offer: it writes among the models of this machine."""
    offer = services.upscaler_offer

    def rows(*, asked: bool) -> Iterator[list[Any]]:
        for status in offer.watch():
            asked = asked or status.phase == "fetching"
            there = status.phase == "present"
            # Who finds it there on loading the page is told nothing.
            said = offer_note(status) if asked or not there else ""
            button = gr.Button(visible=not there, interactive=status.phase != "fetching")
            names = list(services.catalogue.upscalers())
            menu = gr.Dropdown(choices=names, value=offer.name) if asked and there else gr.skip()
            yield [button, gr.HTML(said, visible=bool(said)), menu]

    def look(request: gr.Request) -> Iterator[list[Any]]:
        if is_at_this_machine(request):
            yield from rows(asked=False)

    def fetch(request: gr.Request) -> Iterator[list[Any]]:
        if not is_at_this_machine(request):
            raise NotAllowed(f"{offer.title} can only be fetched from the machine that Atelier runs on.")
        offer.fetch()
        yield from rows(asked=True)

    watching: dict[str, Any] = {
        "outputs": [get, note, form.fields["upscaler"]],
        "show_progress": "hidden",
        "concurrency_limit": None,
    }
    page.load(guarded(look), **watching)
    get.click(guarded(fetch), **watching)


def _given(request: Request) -> str | None:
    return pictures.shown_bytes(request.image) if isinstance(request, Upscale) else None
