"""A place to drop a picture that is not drawn on."""

from __future__ import annotations

import gradio as gr


def picture_input(tab: str, words: str) -> gr.Image:
    """The place, labelled `words`; its value is an upload (see `webui.ui.pictures.uploaded_png`)."""
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
