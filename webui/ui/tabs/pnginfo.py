"""PNG info: what a picture says of how it was made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from webui.gallery import open_picture, read_infotext
from webui.ui import pictures
from webui.ui.components.parameters import parameters_table
from webui.ui.services import Services
from webui.ui.toasts import guarded


@dataclass(frozen=True, slots=True, kw_only=True)
class PngInfo:
    """The tab's parts that others listen to."""

    infotext: gr.State
    sends: dict[str, gr.Button]


def build_pnginfo(services: Services) -> PngInfo:
    """Fills the tab."""
    with gr.Row(elem_classes="studio-even"):
        with gr.Column():
            picture = gr.Image(
                label="Picture",
                type="filepath",
                image_mode=None,
                sources=["upload", "clipboard"],
                elem_id="pnginfo_image",
                elem_classes="picture-input",
                height=420,
                buttons=["fullscreen"],
                placeholder="Drop a picture here\n- or -\nclick to choose one",
            )
        with gr.Column():
            table = gr.HTML("<p class='note'>A picture's parameters show here.</p>", elem_id="html_info_pnginfo")
            with gr.Row(elem_classes="send-buttons"):
                sends = {
                    target: gr.Button(f"Send to {target}", size="sm", elem_id=f"pnginfo_send_to_{target}", min_width=90)
                    for target in ("txt2img", "img2img")
                }
    infotext = gr.State("")

    def read(value: Any) -> list[Any]:
        path = pictures.uploaded_path(value)
        if path is None:
            return ["<p class='note'>A picture's parameters show here.</p>", ""]
        limit = services.settings.current.max_image_pixels
        open_picture(path, limit)  # a damaged picture may still have readable parameters: say that it is damaged
        found = read_infotext(path, limit)
        return [parameters_table(found), found or ""]

    picture.change(
        guarded(read),
        inputs=[picture],
        outputs=[table, infotext],
        show_progress="hidden",
        preprocess=False,
        concurrency_limit=None,
    )
    return PngInfo(infotext=infotext, sends=sends)
