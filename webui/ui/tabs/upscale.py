"""upscale: a picture enlarged, with a slider between before and after, and an offer to fetch one more upscaler."""

from __future__ import annotations

import html
import io
from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr
from PIL import Image

from webui.core.errors import NotAllowed
from webui.core.ports import ModelOffer, OfferStatus
from webui.core.requests import Request, Upscale
from webui.jobs.views import JobView
from webui.ui import memory, pictures
from webui.ui.components.form import Form
from webui.ui.components.job_panel import add_result_panel, add_run_buttons, restore_picture, wire_job_panel
from webui.ui.components.picture_input import picture_input
from webui.ui.components.studio import Header, Studio
from webui.ui.kinds import number, text, whole
from webui.ui.reading import FormValues
from webui.ui.services import Services
from webui.ui.toasts import guarded
from webui.ui.visitors import is_at_this_machine

_DEFAULTS = Upscale(image=b"")
_FIRST_CHOICE = "realesr-animevideov3-x4"  # of what is shipped, the one that a machine without a GPU runs in seconds


def first_upscaler(names: Sequence[str]) -> str:
    """The upscaler that a fresh form shows: the quick network that is shipped, or else the first of `names`."""
    return _FIRST_CHOICE if _FIRST_CHOICE in names else names[0]


def add_upscale_fields(form: Form, upscalers: Sequence[str]) -> None:
    """Adds the upscaler's menu, scale and tiling."""
    form.choice("upscaler", "Upscaler", first_upscaler(upscalers), tuple(upscalers))
    with gr.Row(elem_classes="fields"):
        form.number("scale", "Scale", _DEFAULTS.scale, step=0.5)
        form.number("tile", "Tile (pixels, 0 = whole)", _DEFAULTS.tile, step=32)
        form.number("overlap", "Tile overlap (pixels)", _DEFAULTS.overlap, step=4)


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
    if not isinstance(view.request, Upscale):
        raise TypeError(f"a before-after slider shows upscaled pictures, not {view.task}")
    after = pictures.shown(view.images[0].path)
    with Image.open(after) as made, Image.open(io.BytesIO(view.request.image)) as given:
        return given.convert("RGB").resize(made.size, Image.Resampling.NEAREST), after


def upscale_request(values: FormValues, image: bytes) -> Upscale:
    """The request that the form and its picture (PNG) stand for; raises `InvalidRequest`."""
    return Upscale(
        image=image,
        upscaler=text(values.get("upscaler")),
        scale=number("Scale", values.get("scale")),
        tile=whole("Tile size", values.get("tile")),
        overlap=whole("Tile overlap", values.get("overlap")),
    )


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
        with gr.Column(elem_classes="studio-ask"):
            picture = picture_input("upscale", "Picture to enlarge")
            run = add_run_buttons("upscale", "Upscale")
        with gr.Column(elem_classes="studio-picture"):
            result = add_result_panel("upscale", before_after, before_after_value)
        with gr.Column(elem_classes="studio-settings"):
            add_upscale_fields(form, services.catalogue.upscalers())
            get, note = add_offer(services.upscaler_offer)

    def make_request(image: Any, *values: Any) -> Upscale:
        png = pictures.uploaded_png("picture to upscale", image, services.settings.current.max_image_pixels)
        return upscale_request(form.values(values), png)

    memory.remember_form(page, form)
    _keep_menu_fresh(page, services, form)
    wire_offer(page, services, form, get, note)
    ids = wire_job_panel(
        page,
        services,
        tab="upscale",
        run=run,
        result=result,
        status=header.status,
        inputs=[picture, *form.components],
        make_request=make_request,
    )
    restore_picture(page, services, ids, picture, _given)
    return Studio(header=header, form=form, run=run, result=result, picture=picture)


def _keep_menu_fresh(page: gr.Blocks, services: Services, form: Form) -> None:
    """The menu of a page that is loaded holds what lies in the models folder then, not what did at the start."""
    stored = memory.browser_state("upscale.form", {})

    def renew(values: object) -> gr.Dropdown:
        names = services.catalogue.upscalers()
        wanted = values.get("upscaler") if isinstance(values, dict) else None
        return gr.Dropdown(choices=list(names), value=wanted if wanted in names else first_upscaler(names))

    page.load(guarded(renew), inputs=[stored], outputs=[form.fields["upscaler"]], show_progress="hidden", queue=False)


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
