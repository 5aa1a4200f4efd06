"""txt2img: pictures from words, and each of them larger."""

from __future__ import annotations

from typing import Any

import gradio as gr

from webui.core.errors import InvalidRequest
from webui.core.requests import Txt2Img
from webui.ui import memory
from webui.ui.components.form import Form
from webui.ui.components.hires import add_hires, hires_of, keep_size_fresh, upscaled_again
from webui.ui.components.job_panel import Start, shown_image, wire_job_panel
from webui.ui.components.studio import Header, Studio, build_studio
from webui.ui.reading import FormValues, generation_fields
from webui.ui.services import Services
from webui.ui.toasts import warn


def txt2img_request(values: FormValues) -> Txt2Img:
    """The request that the form stands for; raises `InvalidRequest` where a field holds no number."""
    return Txt2Img(**generation_fields("txt2img", values))


def build_txt2img(page: gr.Blocks, services: Services, header: Header) -> Studio:
    """Fills the tab."""
    lines: list[gr.HTML] = []

    def hires_section(form: Form) -> None:
        lines.append(add_hires(form, services.catalogue))

    studio = build_studio(
        "txt2img", services, header, after_settings=hires_section, actions={"upscale": "Upscale this one"}
    )
    form = studio.form
    inputs = [header.checkpoint, *form.components]

    def make_request(checkpoint: str, *values: Any) -> Txt2Img:
        return txt2img_request({**form.values(values), "checkpoint": checkpoint})

    def make_larger(shown: object, checkpoint: str, *values: Any) -> Txt2Img:
        image = shown_image(services.jobs, shown)
        if image is None or not image.path.is_file():
            raise InvalidRequest("There is no picture to upscale yet; make one first.")
        held = form.values(values)
        base = Txt2Img(checkpoint=checkpoint or "")
        return upscaled_again(
            base, hires_of(held), image.infotext, image.path.read_bytes(), services.known_models(), warn
        )

    memory.remember_form(page, form)
    keep_size_fresh(page, form, lines[0])
    wire_job_panel(
        page,
        services,
        tab="txt2img",
        run=studio.run,
        result=studio.result,
        status=header.status,
        inputs=inputs,
        make_request=make_request,
        also=[Start(button=studio.result.actions["upscale"], inputs=[studio.result.shown, *inputs], make=make_larger)],
    )
    return studio
