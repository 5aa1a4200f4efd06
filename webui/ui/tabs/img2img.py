"""img2img: pictures from words and a picture."""

from __future__ import annotations

from typing import Any

import gradio as gr

from webui.core.errors import InvalidRequest
from webui.core.requests import Choice, Img2Img, Request, ResizeMode
from webui.ui import memory, pictures
from webui.ui.components.form import Form
from webui.ui.components.job_panel import restore_picture, wire_job_panel
from webui.ui.components.studio import Header, Studio, build_studio
from webui.ui.kinds import number
from webui.ui.reading import FormValues, generation_fields
from webui.ui.services import Services


def add_img2img_fields(form: Form) -> None:
    """Adds denoising strength and resize mode, which inpainting has as well."""
    form.slider("denoising_strength", "Denoising strength", 0.75, (0, 1), 0.01)
    form.radio("resize_mode", "Resize mode", ResizeMode.STRETCH.value, tuple(mode.value for mode in ResizeMode))


def picture_input(tab: str, words: str = "Picture to start from") -> gr.Image:
    """The picture to start from."""
    return gr.Image(
        label=words,
        type="filepath",
        image_mode=None,
        sources=["upload", "clipboard"],
        elem_id=f"{tab}_image",
        elem_classes="picture-input",
        height=280,
        buttons=["fullscreen"],
        placeholder="Drop a picture here\n- or -\nclick to choose one",
    )


def choice(what: str, kind: type[Choice], value: object) -> Choice:
    """`value` as a member of `kind`; raises `InvalidRequest` naming `what`."""
    try:
        return kind(value)
    except ValueError:
        known = ", ".join(member.value for member in kind)
        raise InvalidRequest(f"{what} is {value!r}; choose one of {known}.") from None


def img2img_request(values: FormValues, init_image: bytes) -> Img2Img:
    """The request that the form and its picture (PNG) stand for; raises `InvalidRequest`."""
    return Img2Img(
        **generation_fields(values),
        init_image=init_image,
        denoising_strength=number("Denoising strength", values.get("denoising_strength")),
        resize_mode=ResizeMode(choice("Resize mode", ResizeMode, values.get("resize_mode"))),
    )


def build_img2img(page: gr.Blocks, services: Services, header: Header) -> Studio:
    """Fills the tab."""
    studio = build_studio(
        "img2img", services, header, picture=lambda: picture_input("img2img"), extra=add_img2img_fields
    )
    form, picture = studio.form, studio.started_from

    def make_request(checkpoint: str, image: Any, *values: Any) -> Img2Img:
        png = pictures.uploaded_png("picture to start from", image, services.settings.current.max_image_pixels)
        return img2img_request({**form.values(values), "checkpoint": checkpoint}, png)

    memory.remember_form(page, form)
    ids = wire_job_panel(
        page,
        services,
        tab="img2img",
        run=studio.run,
        result=studio.result,
        status=header.status,
        inputs=[header.checkpoint, picture, *form.components],
        make_request=make_request,
    )
    restore_picture(page, services, ids, picture, _start_picture)
    return studio


def _start_picture(request: Request) -> str | None:
    return pictures.shown_bytes(request.init_image) if isinstance(request, Img2Img) else None
