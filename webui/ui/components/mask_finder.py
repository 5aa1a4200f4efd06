"""Masks that are not drawn: what words name, the subject, or what lies behind it. The models are `core.ports.Masker`'s.

The mask is put on the canvas, where it can be drawn on, inverted and undone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr
from PIL import Image, ImageChops

from webui.gallery import png_bytes
from webui.ui import pictures
from webui.ui.components.canvas import canvas_value, with_canvas
from webui.ui.kinds import text
from webui.ui.services import Services
from webui.ui.toasts import guarded


def add_mask_finder(services: Services, canvas: gr.HTML) -> None:
    """Adds the fields and buttons where it is called, and connects them with `canvas`."""
    masker = services.masker
    with gr.Accordion("Find the mask", open=False, elem_classes="more"):
        with gr.Row(elem_classes="fields"):
            words = gr.Textbox(
                label="What to mask, parted by commas",
                placeholder="the hat, the shoes",
                elem_id="inpaint_mask_words",
                lines=1,
                max_lines=1,
                min_width=120,
            )
            by_words = gr.Button("Mask by words", size="sm", scale=0, min_width=120, elem_id="inpaint_mask_by_words")
        with gr.Row(elem_classes="quick-sides"):
            subject = gr.Button("Mask the subject", size="sm", elem_id="inpaint_mask_subject")
            background = gr.Button("Mask the background", size="sm", elem_id="inpaint_mask_background")

    def finding(find: Callable[[Image.Image, str], Image.Image]) -> Callable[[Any, Any], dict[str, Any]]:
        def found(value: Any, said: Any) -> dict[str, Any]:
            picture = pictures.canvas_picture(
                "picture to mask", value, services.settings.current.max_image_pixels
            ).convert("RGB")
            return canvas_value(mask=pictures.shown_bytes(png_bytes(find(picture, text(said)))))

        return guarded(found)

    finders: dict[gr.Button, Callable[[Image.Image, str], Image.Image]] = {
        by_words: masker.by_prompt,
        subject: lambda picture, _: masker.foreground(picture),
        background: lambda picture, _: ImageChops.invert(masker.foreground(picture)),
    }
    inputs = [canvas, words]
    for button, find in finders.items():
        button.click(finding(find), inputs=inputs, outputs=[canvas], js=with_canvas(canvas, inputs), preprocess=False)
