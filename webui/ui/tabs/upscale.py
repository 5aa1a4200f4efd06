"""upscale: a picture enlarged, with a slider between before and after."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import gradio as gr
from PIL import Image

from webui.core.requests import Request, Upscale
from webui.jobs.views import JobView
from webui.ui import memory, pictures
from webui.ui.components.form import Form
from webui.ui.components.job_panel import add_result_panel, add_run_buttons, restore_picture, wire_job_panel
from webui.ui.components.studio import Header, Studio
from webui.ui.reading import FormValues, number, text, whole
from webui.ui.services import Services
from webui.ui.tabs.img2img import picture_input

_DEFAULTS = Upscale(image=b"")


def add_upscale_fields(form: Form, upscalers: Sequence[str]) -> None:
    """Adds the upscaler's menu, scale and tiling."""
    form.choice("upscaler", "Upscaler", upscalers[0], tuple(upscalers))
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

    def make_request(image: Any, *values: Any) -> Upscale:
        png = pictures.uploaded_png("picture to upscale", image, services.settings.current.max_image_pixels)
        return upscale_request(form.values(values), png)

    memory.remember_form(page, form)
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
    return Studio(form=form, run=run, result=result, picture=picture)


def _given(request: Request) -> str | None:
    return pictures.shown_bytes(request.image) if isinstance(request, Upscale) else None
