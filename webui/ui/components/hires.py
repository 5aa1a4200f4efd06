"""Hires fix in txt2img: a switch that opens its section, the size that will come out, and "upscale this one".

What the fields are is said in `webui.ui.more`; which size comes out, in `webui.core.hires`.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr
from PIL import Image

from webui.core.errors import InvalidRequest
from webui.core.fields import replaced
from webui.core.hires import enlargement
from webui.core.infotext import KnownModels, infotext_to_request, parse_infotext
from webui.core.ports import ModelCatalogue
from webui.core.requests import HiresFix, Txt2Img
from webui.core.validation import validate
from webui.ui.components.form import Form
from webui.ui.components.more import component_of
from webui.ui.more import HIRES, HIRES_PROMPTS, HIRES_SWITCH, hires_fields, read_more
from webui.ui.toasts import guarded

_SIZE_FIELDS = ("width", "height", "hires.scale", "hires.width", "hires.height")


def add_hires(form: Form, models: ModelCatalogue) -> gr.HTML:
    """Adds the section to `form`, under the request's dotted names; returns the line that says which size comes out."""
    with gr.Column(elem_id=f"{form.tab}_hr", elem_classes="hires"):
        with gr.Row(elem_classes="hires-head"):
            form.fields[HIRES_SWITCH.name] = component_of(form.tab, HIRES_SWITCH, models)
            line = gr.HTML("", elem_id=f"{form.tab}_hr_finalres", elem_classes="hires-size", padding=False)
        with gr.Column(elem_classes="hires-fields"):  # shown while the switch is on (assets/atelier.css)
            for row in HIRES:
                with gr.Row(elem_classes="fields"):
                    for field in row:
                        form.fields[field.name] = component_of(form.tab, field, models)
            with gr.Accordion("Another prompt", open=False, elem_id=f"{form.tab}_hr_prompts", elem_classes="more"):
                for field in HIRES_PROMPTS:
                    form.fields[field.name] = component_of(form.tab, field, models)
    return line


def keep_size_fresh(page: gr.Blocks, form: Form, line: gr.HTML) -> None:
    """The line follows the fields that it depends on."""
    fields = [form.fields[name] for name in _SIZE_FIELDS]

    def shown(*values: Any) -> str:
        return size_line(dict(zip(_SIZE_FIELDS, values, strict=True)))

    gr.on(
        [page.load, *(field.change for field in fields)],  # pyright: ignore[reportAttributeAccessIssue] # all inputs have one
        guarded(shown),
        inputs=fields,
        outputs=[line],
        show_progress="hidden",
        preprocess=False,
        queue=False,
        trigger_mode="always_last",
    )


def size_line(values: Mapping[str, Any]) -> str:
    """Which size becomes which, "512x512 → 1024x1024"; "" for fields that make no valid request."""
    try:
        request = replaced(Txt2Img(), values)
        asked = replaced(request, {"hires.enabled": True})
        validate(asked)
    except (InvalidRequest, TypeError):  # a field that is being typed into may hold anything
        return ""
    return f"{asked.size} → {enlargement(asked).target}"


def hires_of(values: Mapping[str, Any]) -> HiresFix:
    """What the section asks for, its switch or not; raises `InvalidRequest`."""
    wanted = {field.name: values[field.name] for field in hires_fields()}
    return read_more("txt2img", {**wanted, HIRES_SWITCH.name: True})["hires"]


def upscaled_again(
    base: Txt2Img, hires: HiresFix, infotext: str, png: bytes, models: KnownModels, warn: Callable[[str], None]
) -> Txt2Img:
    """The request that makes the picture `png` larger as hires fix would have: its own `infotext`, the form's `hires`.

    What the text leaves out is `base`'s; `warn` is told what it names in vain.
    """
    pasted = infotext_to_request(parse_infotext(infotext), base, models)
    for sentence in pasted.warnings:
        warn(sentence)
    with Image.open(io.BytesIO(png)) as picture:
        width, height = picture.size
    return dataclasses.replace(
        pasted.request,
        width=width,
        height=height,
        batch_size=1,
        batch_count=1,
        hires=dataclasses.replace(hires, enabled=True, first_pass=png),
    )
