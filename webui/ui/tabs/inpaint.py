"""inpaint: part of a picture made anew, or a picture made larger at its sides.

One canvas does what A1111 has three modes for: drawing a mask, painting what should be there, uploading a mask.
"""

from __future__ import annotations

import json
from typing import Any

import gradio as gr

from webui.core.errors import InvalidRequest
from webui.core.requests import Inpaint, InpaintArea, MaskedContent, Outpaint, grown_size
from webui.ui import memory, pictures
from webui.ui.components.canvas import picture_canvas, take_canvas_size
from webui.ui.components.folder_batch import add_folder_batch
from webui.ui.components.form import Form
from webui.ui.components.job_panel import wire_job_panel
from webui.ui.components.mask_finder import add_mask_finder
from webui.ui.components.studio import Header, Studio, build_studio
from webui.ui.kinds import whole
from webui.ui.reading import FormValues
from webui.ui.services import Services
from webui.ui.tabs.img2img import NO_PICTURE, add_start_fields, choice, for_a_folder, start_fields

_SIDES = ("left", "top", "right", "bottom")
_QUICK_GROWTH = 128


def add_inpaint_fields(form: Form) -> gr.Button:
    """Adds what inpainting asks for beyond img2img's fields, and those; returns "use the picture's size"."""
    sizing = add_start_fields(form)
    form.radio(
        "masked_content",
        "Masked content",
        MaskedContent.ORIGINAL.value,
        tuple(content.value for content in MaskedContent),
    )
    form.radio("area", "Inpaint area", InpaintArea.WHOLE.value, tuple(area.value for area in InpaintArea))
    with gr.Row(elem_classes="fields"):
        form.number("mask_blur", "Mask blur (pixels)", 4)
        form.number("padding", "Only masked padding (pixels)", 32)
    form.fields["mask_inverted"] = gr.Checkbox(
        False, label="Invert the mask: keep what is drawn over, change the rest", elem_id="inpaint_mask_inverted"
    )
    return sizing


def add_outpaint_fields(form: Form) -> list[gr.Button]:
    """Adds how far the picture grows on each side; returns the buttons for the sides, and the one that resets them."""
    with gr.Accordion(
        "Outpaint: make the picture larger", open=False, elem_id=f"{form.tab}_outpaint", elem_classes="more"
    ):
        with gr.Row(elem_classes="fields"):
            for side in _SIDES:
                form.number(f"outpaint.{side}", f"{side.title()} (pixels)", 0, min_width=60)
        with gr.Row(elem_classes="quick-sides"):
            return [
                gr.Button(
                    words, size="sm", min_width=60, elem_id=f"{form.tab}_outpaint_{words.partition(' ')[0].lower()}"
                )
                for words in (*(f"{side.title()} +{_QUICK_GROWTH}" for side in _SIDES), "None")
            ]


def inpaint_request(values: FormValues, drawn: pictures.Drawn) -> Inpaint:
    """The request that the form and what its canvas holds stand for; raises `InvalidRequest`."""
    outpaint = Outpaint(**{side: whole(f"Outpaint {side}", values.get(f"outpaint.{side}", 0)) for side in _SIDES})
    size = grown_size(drawn.size, outpaint) if outpaint.grows else drawn.size
    return Inpaint(
        **start_fields("inpaint", values, size),
        init_image=drawn.picture,
        mask=drawn.mask,
        mask_blur=whole("Mask blur", values.get("mask_blur")),
        padding=whole("Padding", values.get("padding")),
        mask_inverted=values.get("mask_inverted") is True,
        area=InpaintArea(choice("Inpaint area", InpaintArea, values.get("area"))),
        masked_content=MaskedContent(choice("Masked content", MaskedContent, values.get("masked_content"))),
        outpaint=outpaint,
    )


def with_something_to_change(request: Inpaint) -> Inpaint:
    """`request`; raises `InvalidRequest` where nothing is masked and the picture does not grow."""
    if not request.mask and not request.outpaint.grows:
        raise InvalidRequest("Nothing is masked; draw over the part of the picture that should change.")
    return request


def build_inpaint(page: gr.Blocks, services: Services, header: Header) -> Studio:
    """Fills the tab."""
    buttons: list[gr.Button] = []

    def add_canvas() -> gr.HTML:
        canvas = picture_canvas(
            "inpaint",
            brushes=("mask", "paint"),
            words="Drop a picture here, or click to choose one; then draw over what should change",
        )
        add_mask_finder(services, canvas)
        return canvas

    def add_fields(form: Form) -> None:
        buttons.append(add_inpaint_fields(form))
        buttons.extend(add_outpaint_fields(form))

    studio = build_studio(
        "inpaint",
        services,
        header,
        picture=add_canvas,
        extra=add_fields,
    )
    form, canvas = studio.form, studio.canvas

    def make_request(checkpoint: str, value: Any, *values: Any) -> Inpaint:
        drawn = pictures.drawn_pictures("picture to inpaint", value, services.settings.current.max_image_pixels)
        return with_something_to_change(inpaint_request({**form.values(values), "checkpoint": checkpoint}, drawn))

    memory.remember_form(page, form)
    take_canvas_size(buttons[0], canvas, form)
    _wire_outpaint(form, canvas, buttons[1:])
    wire_job_panel(
        page,
        services,
        tab="inpaint",
        run=studio.run,
        result=studio.result,
        status=header.status,
        inputs=[header.checkpoint, canvas, *form.components],
        make_request=make_request,
        canvas=canvas,
    )

    def folder_request(checkpoint: str, *values: Any) -> Inpaint:
        return inpaint_request(for_a_folder({**form.values(values), "checkpoint": checkpoint}), NO_PICTURE)

    with studio.settings, gr.Accordion("A folder of pictures, with masks", open=False, elem_classes="more"):
        add_folder_batch(
            page,
            services,
            tab="inpaint",
            inputs=[header.checkpoint, *form.components],
            make_request=folder_request,
        )
    return studio


def _wire_outpaint(form: Form, canvas: gr.HTML, buttons: list[gr.Button]) -> None:
    """The canvas shows how far the picture grows, and width and height follow; `buttons` are the sides', and none's."""
    sides = [form.fields[f"outpaint.{side}"] for side in _SIDES]
    size = [form.fields["width"], form.fields["height"]]
    element = json.dumps(canvas.elem_id)
    gr.on(
        [side.change for side in sides],  # pyright: ignore[reportAttributeAccessIssue] # gradio makes events at run time
        fn=None,
        inputs=sides,
        js=f"(...growth) => {{ window.atelier.growCanvas({element}, growth); }}",
        show_progress="hidden",
    )

    def follow(trigger: Any, add: list[int] | None, outputs: list[Any]) -> None:
        kept = len(sides) + len(size) - len(outputs)
        trigger(
            fn=None,
            inputs=[*sides, *size],
            outputs=outputs,
            js=f"(...values) => window.atelier.outpaintBy({element}, {json.dumps(add)}, values).slice({kept})",
            show_progress="hidden",
        )

    for place, button in enumerate(buttons):
        add = [_QUICK_GROWTH * (place == index) for index in range(len(sides))] if place < len(sides) else None
        follow(button.click, add, [*sides, *size])
    for side in sides:
        follow(side.input, [0] * len(sides), size)  # pyright: ignore[reportAttributeAccessIssue] # as above
