"""Sends pictures and parameters from one tab to another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr

from webui.ui import pictures
from webui.ui.components.canvas import canvas_value
from webui.ui.components.job_panel import ResultPanel, shown_image
from webui.ui.components.studio import Studio, keep_checkpoint, pasted_values
from webui.ui.components.together import on_click
from webui.ui.services import Services
from webui.ui.tabs.pnginfo import PngInfo
from webui.ui.toasts import guarded, inform


def wire_sending(services: Services, studios: Mapping[str, Studio], info: PngInfo, tabs: gr.Tabs) -> None:
    """Connects every "send to" button of `studios` and of PNG info."""
    for source in studios.values():
        for target, button in source.result.sends.items():
            _send_picture(services, source.result, target, studios[target], button, tabs)
    for target, button in info.sends.items():
        _send_infotext(services, info, target, studios[target], button, tabs)


def _send_picture(
    services: Services, source: ResultPanel, target: str, studio: Studio, button: gr.Button, tabs: gr.Tabs
) -> None:
    form = studio.form
    takes_prompt = "prompt" in form.fields
    fields = [studio.header.checkpoint, *form.components] if takes_prompt else []

    def send(shown: object, *values: Any) -> list[Any]:
        image = shown_image(services.jobs, shown)
        if image is None:
            inform("There is no picture to send yet.")
            return [gr.skip()] * (2 + len(fields))
        copy = pictures.shown(image.path)
        picture = canvas_value(picture=copy) if isinstance(studio.picture, gr.HTML) else copy
        updates = _pasted(services, studio, image.infotext, values) if takes_prompt else []
        return [gr.Tabs(selected=target), picture, *updates]

    on_click(button, guarded(send), inputs=[source.shown, *fields], outputs=[tabs, studio.started_from, *fields]).then(
        **keep_checkpoint(studio.header)
    )


def _send_infotext(
    services: Services, info: PngInfo, target: str, studio: Studio, button: gr.Button, tabs: gr.Tabs
) -> None:
    fields = [studio.header.checkpoint, *studio.form.components]

    def send(infotext: str, *values: Any) -> list[Any]:
        if not infotext:
            inform("There are no parameters to send; drop a picture that carries some.")
            return [gr.skip()] * (1 + len(fields))
        return [gr.Tabs(selected=target), *_pasted(services, studio, infotext, values)]

    on_click(button, guarded(send), inputs=[info.infotext, *fields], outputs=[tabs, *fields]).then(
        **keep_checkpoint(studio.header)
    )


def _pasted(services: Services, studio: Studio, infotext: str, values: tuple[Any, ...]) -> list[Any]:
    """What the checkpoint's menu and the form, which hold `values`, become."""
    held = {"checkpoint": values[0], **studio.form.values(values[1:])}
    changes = pasted_values(studio.form.tab, infotext, held, services.known_models())
    return [changes.get("checkpoint", gr.skip()), *studio.form.updates(changes)]
