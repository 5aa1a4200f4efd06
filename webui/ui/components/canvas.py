"""The canvas on which one draws over a picture: where it stands in the page, and how its value travels.

The drawing is done by assets/canvas.js. What is drawn stays in the browser until a handler needs it: an event whose
`js` is `with_canvas` uploads it first, so that nothing drawn in the last moment is missing. The value is a dictionary:
"picture", "paint" and "mask" are uploads (a layer is None where nothing is drawn); `webui.ui.pictures` reads it.
"""

from __future__ import annotations

import html
import json
import secrets
from collections.abc import Sequence
from typing import Any

import gradio as gr
from gradio.components import Component
from gradio.data_classes import FileData

from webui.ui.components.form import Form


def picture_canvas(tab: str, *, brushes: Sequence[str], words: str, blank: bool = False) -> gr.HTML:
    """The canvas of `tab`, with its `brushes` ("mask", "paint"; the first is B's) and the invitation `words`.

    With `blank`, it may begin empty, in the size that the form says.
    """
    options = {
        "brushes": list(brushes),
        "words": words,
        "blank": [f"#{tab}_width", f"#{tab}_height"] if blank else None,
    }
    described = html.escape(json.dumps({"id": f"{tab}_image", "options": options}), quote=True)
    return gr.HTML(
        None,
        html_template=f'<div data-canvas="{described}"></div>',
        js_on_load="window.atelier.mountCanvas(element, props, upload, watch);",
        apply_default_css=False,
        elem_id=f"{tab}_image",
        elem_classes="picture-canvas",
        padding=False,
    )


def canvas_value(*, picture: str | None = None, mask: str | None = None) -> dict[str, Any]:
    """What a canvas is given: a `picture` (a path that the page may show), or a `mask` for the one it has, or both."""
    sent = {"picture": picture, "mask": mask}
    files = {what: None if path is None else FileData(path=path).model_dump() for what, path in sent.items()}
    # The stamp tells a picture that is sent again from one that was there all along.
    return {**files, "stamp": secrets.token_hex(8)}


def with_canvas(canvas: gr.HTML, inputs: Sequence[Component]) -> str:
    """The `js` of an event with these `inputs`, among them `canvas`: puts what is drawn into its place."""
    place = next(index for index, component in enumerate(inputs) if component is canvas)
    return f"(...values) => window.atelier.withCanvas({json.dumps(canvas.elem_id)}, {place}, values)"


def take_canvas_size(button: gr.Button, canvas: gr.HTML, form: Form) -> None:
    """`button` sets the width and height of `form` to those of the picture on `canvas`, as multiples of 8."""
    size = [form.fields["width"], form.fields["height"]]
    button.click(
        fn=None,
        inputs=size,
        outputs=size,
        js=f"(...size) => window.atelier.canvasSize({json.dumps(canvas.elem_id)}, size)",
        show_progress="hidden",
    )
