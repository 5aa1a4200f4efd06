"""Vignette: darkens (or lightens) the corners of every finished picture, and counts the steps it saw.

The example of docs/extensions.md. It uses every hook that most extensions need; copy it to start one of your own.
"""

from __future__ import annotations

import itertools

import gradio as gr
from PIL import Image

from webui.extensions import ExtensionContext, ExtensionSetting, Tab, hookimpl

from .drawing import vignette

__version__ = "1.0"

# Lives as long as the extension is loaded; next() is atomic, so the worker and the page may both touch it.
_steps = itertools.count(1)
_latest = {"step": 0}


@hookimpl
def atelier_settings() -> list[ExtensionSetting]:
    return [
        ExtensionSetting(key="enabled", label="Draw the vignette", default=True, kind="bool"),
        ExtensionSetting(key="strength", label="Strength", default=0.5, kind="float", minimum=0, maximum=1),
        ExtensionSetting(key="colour", label="Colour", default="black", kind="choice", choices=("black", "white")),
    ]


@hookimpl
def atelier_process_image(image: Image.Image, context: ExtensionContext) -> Image.Image | None:
    return _drawn(image, context) if context.value("enabled") else None


@hookimpl
def atelier_on_step() -> None:
    _latest["step"] = next(_steps)


@hookimpl
def atelier_tabs(context: ExtensionContext) -> list[Tab]:
    def build() -> None:
        with gr.Row():
            before = gr.Image(type="pil", label="Picture", elem_id="vignette_before")
            after = gr.Image(type="pil", label="With the vignette", elem_id="vignette_after", interactive=False)
        apply = gr.Button("Apply", elem_id="vignette_apply")
        steps = gr.Textbox(label="Steps seen", elem_id="vignette_steps", interactive=False)
        apply.click(
            lambda image: (image and _drawn(image, context), str(_latest["step"])),
            before,
            [after, steps],
            api_visibility="private",
        )

    return [Tab(title="Vignette", id="vignette", build=build)]


def _drawn(image: Image.Image, context: ExtensionContext) -> Image.Image:
    return vignette(image, strength=float(context.value("strength")), colour=str(context.value("colour")))
