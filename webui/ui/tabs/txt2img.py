"""txt2img: pictures from words."""

from __future__ import annotations

from typing import Any

import gradio as gr

from webui.core.requests import Txt2Img
from webui.ui import memory
from webui.ui.components.job_panel import wire_job_panel
from webui.ui.components.studio import Header, Studio, build_studio
from webui.ui.reading import FormValues, generation_fields
from webui.ui.services import Services


def txt2img_request(values: FormValues) -> Txt2Img:
    """The request that the form stands for; raises `InvalidRequest` where a field holds no number."""
    return Txt2Img(**generation_fields("txt2img", values))


def build_txt2img(page: gr.Blocks, services: Services, header: Header) -> Studio:
    """Fills the tab."""
    studio = build_studio("txt2img", services, header)
    form = studio.form

    def make_request(checkpoint: str, *values: Any) -> Txt2Img:
        return txt2img_request({**form.values(values), "checkpoint": checkpoint})

    memory.remember_form(page, form)
    wire_job_panel(
        page,
        services,
        tab="txt2img",
        run=studio.run,
        result=studio.result,
        status=header.status,
        inputs=[header.checkpoint, *form.components],
        make_request=make_request,
    )
    return studio
