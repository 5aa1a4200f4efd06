"""inpaint: part of a picture made anew."""

from __future__ import annotations

from typing import Any

import gradio as gr

from webui.core.requests import Inpaint, InpaintArea, MaskedContent, Request, ResizeMode
from webui.ui import memory, pictures
from webui.ui.components.form import Form
from webui.ui.components.job_panel import restore_picture, wire_job_panel
from webui.ui.components.studio import Header, Studio, build_studio
from webui.ui.kinds import number, whole
from webui.ui.reading import FormValues, generation_fields
from webui.ui.services import Services
from webui.ui.tabs.img2img import add_img2img_fields, choice

_MASK_COLOUR = ("rgb(255, 255, 255)", 0.65)


def add_inpaint_fields(form: Form) -> None:
    """Adds what inpainting asks for beyond img2img's fields, and those."""
    add_img2img_fields(form)
    with gr.Row(elem_classes="fields"):
        form.number("mask_blur", "Mask blur (pixels)", 4)
        form.number("padding", "Only masked padding (pixels)", 32)
    form.fields["mask_inverted"] = gr.Checkbox(
        False, label="Invert the mask: keep what is drawn over, change the rest", elem_id="inpaint_mask_inverted"
    )
    form.radio("area", "Inpaint area", InpaintArea.WHOLE.value, tuple(area.value for area in InpaintArea))
    form.radio(
        "masked_content",
        "Masked content",
        MaskedContent.ORIGINAL.value,
        tuple(content.value for content in MaskedContent),
    )


def mask_editor() -> gr.ImageEditor:
    """The picture with a white brush over it; what is drawn is the mask."""
    return gr.ImageEditor(
        label="Draw over what should change",
        type="pil",
        image_mode="RGBA",
        format="png",
        sources=("upload", "clipboard"),
        transforms=(),
        layers=False,
        brush=gr.Brush(default_size=24, colors=[_MASK_COLOUR], default_color=_MASK_COLOUR, color_mode="fixed"),
        eraser=gr.Eraser(default_size=24),
        elem_id="inpaint_image",
        elem_classes="picture-input",
        height=480,
        buttons=["fullscreen"],
        placeholder="Drop a picture here\nthen draw over what should change",
    )


def inpaint_request(values: FormValues, init_image: bytes, mask: bytes) -> Inpaint:
    """The request that the form, the picture and the mask (PNGs of one size) stand for; raises `InvalidRequest`."""
    return Inpaint(
        **generation_fields(values),
        init_image=init_image,
        mask=mask,
        denoising_strength=number("Denoising strength", values.get("denoising_strength")),
        resize_mode=ResizeMode(choice("Resize mode", ResizeMode, values.get("resize_mode"))),
        mask_blur=whole("Mask blur", values.get("mask_blur")),
        padding=whole("Padding", values.get("padding")),
        mask_inverted=values.get("mask_inverted") is True,
        area=InpaintArea(choice("Inpaint area", InpaintArea, values.get("area"))),
        masked_content=MaskedContent(choice("Masked content", MaskedContent, values.get("masked_content"))),
    )


def build_inpaint(page: gr.Blocks, services: Services, header: Header) -> Studio:
    """Fills the tab."""
    studio = build_studio("inpaint", services, header, picture=mask_editor, extra=add_inpaint_fields)
    form, editor = studio.form, studio.started_from

    def make_request(checkpoint: str, drawn: dict[str, Any] | None, *values: Any) -> Inpaint:
        picture, mask = pictures.editor_pictures(drawn)
        return inpaint_request({**form.values(values), "checkpoint": checkpoint}, picture, mask)

    memory.remember_form(page, form)
    ids = wire_job_panel(
        page,
        services,
        tab="inpaint",
        run=studio.run,
        result=studio.result,
        status=header.status,
        inputs=[header.checkpoint, editor, *form.components],
        make_request=make_request,
        # Only Gradio itself can put an editor's layers together.
        preprocess=True,
    )
    restore_picture(page, services, ids, editor, _drawn)
    return studio


def _drawn(request: Request) -> dict[str, Any] | None:
    if not isinstance(request, Inpaint):
        return None
    layer = pictures.shown_bytes(pictures.mask_layer(request.mask, _MASK_COLOUR[1]))
    return {"background": pictures.shown_bytes(request.init_image), "layers": [layer], "composite": None}
