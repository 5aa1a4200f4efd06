"""img2img: pictures from words and a picture, which may be painted on first (A1111's "Sketch")."""

from __future__ import annotations

from typing import Any

import gradio as gr

from webui.core import catalogue
from webui.core.errors import InvalidRequest
from webui.core.geometry import Size
from webui.core.requests import Choice, Img2Img, ResizeMode
from webui.ui import memory, pictures
from webui.ui.components.canvas import picture_canvas, take_canvas_size
from webui.ui.components.folder_batch import add_folder_batch
from webui.ui.components.form import Form, tool_button
from webui.ui.components.job_panel import wire_job_panel
from webui.ui.components.studio import Header, Studio, build_studio
from webui.ui.kinds import number
from webui.ui.reading import RESIZE_BY, FormValues, generation_fields
from webui.ui.services import Services

_RESIZE_BY_RANGE = (0.0, 4.0)


def add_start_fields(form: Form) -> gr.Button:
    """Adds denoising strength and how the picture is fitted, which inpainting has as well; returns "use its size"."""
    form.slider("denoising_strength", "Denoising strength", 0.75, (0, 1), 0.01)
    form.radio("resize_mode", "Resize mode", ResizeMode.STRETCH.value, tuple(mode.value for mode in ResizeMode))
    with gr.Row(elem_classes="fields resize-fields"):
        form.slider(RESIZE_BY, "Resize by (0: to width and height)", 0, _RESIZE_BY_RANGE, 0.05)
        return tool_button("Use the picture's size", f"{form.tab}_detect_image_size_btn", "picture-size")


def choice(what: str, kind: type[Choice], value: object) -> Choice:
    """`value` as a member of `kind`; raises `InvalidRequest` naming `what`."""
    try:
        return kind(value)
    except ValueError:
        known = ", ".join(member.value for member in kind)
        raise InvalidRequest(f"{what} is {value!r}; choose one of {known}.") from None


def start_fields(tab: str, values: FormValues, size: Size) -> dict[str, Any]:
    """The keyword arguments that `Img2Img` and `Inpaint` share, for a picture of `size`; raises `InvalidRequest`.

    With a factor under "Resize by", width and height are the picture's times it, as multiples of 8.
    """
    fields = generation_fields(tab, values)
    factor = number("Resize by", values.get(RESIZE_BY, 0))
    if factor:
        step = catalogue.DIMENSION_STEP
        for side, length in (("width", size.width), ("height", size.height)):
            fields[side] = max(step, round(length * factor / step) * step)
    return fields | {
        "denoising_strength": number("Denoising strength", values.get("denoising_strength")),
        "resize_mode": ResizeMode(choice("Resize mode", ResizeMode, values.get("resize_mode"))),
    }


NO_PICTURE = pictures.Drawn(picture=b"", mask=b"", size=Size(0, 0))
"""In place of what a canvas holds, in requests for a folder of pictures."""


def for_a_folder(values: FormValues) -> FormValues:
    """`values`, which must not depend on the size of one picture; raises `InvalidRequest` where they do."""
    if values.get(RESIZE_BY):
        raise InvalidRequest(
            "Resize by follows the size of one picture; set it to 0 and say width and height for a folder."
        )
    return values


def img2img_request(values: FormValues, drawn: pictures.Drawn) -> Img2Img:
    """The request that the form and what its canvas holds stand for; raises `InvalidRequest`."""
    return Img2Img(**start_fields("img2img", values, drawn.size), init_image=drawn.picture)


def build_img2img(page: gr.Blocks, services: Services, header: Header) -> Studio:
    """Fills the tab."""
    sizing: list[gr.Button] = []
    studio = build_studio(
        "img2img",
        services,
        header,
        picture=lambda: picture_canvas(
            "img2img", brushes=("paint",), words="Drop a picture here, or click to choose one", blank=True
        ),
        extra=lambda form: sizing.append(add_start_fields(form)),
    )
    form, canvas = studio.form, studio.canvas

    def make_request(checkpoint: str, value: Any, *values: Any) -> Img2Img:
        drawn = pictures.drawn_pictures("picture to start from", value, services.settings.current.max_image_pixels)
        return img2img_request({**form.values(values), "checkpoint": checkpoint}, drawn)

    memory.remember_form(page, form)
    take_canvas_size(sizing[0], canvas, form)
    wire_job_panel(
        page,
        services,
        tab="img2img",
        run=studio.run,
        result=studio.result,
        status=header.status,
        inputs=[header.checkpoint, canvas, *form.components],
        make_request=make_request,
        canvas=canvas,
    )

    def folder_request(checkpoint: str, *values: Any) -> Img2Img:
        return img2img_request(for_a_folder({**form.values(values), "checkpoint": checkpoint}), NO_PICTURE)

    with studio.settings, gr.Accordion("A folder of pictures", open=False, elem_classes="more"):
        add_folder_batch(
            page,
            services,
            tab="img2img",
            inputs=[header.checkpoint, *form.components],
            make_request=folder_request,
        )
    return studio
