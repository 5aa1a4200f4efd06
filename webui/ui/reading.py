"""What a form that makes pictures holds, as the fields of a request. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from webui.ui.kinds import number, text, whole
from webui.ui.more import read_more

FormValues = Mapping[str, Any]
"""A form's values by the names of the request's fields, and "checkpoint" from the menu above the tabs."""

RESIZE_BY = "resize_by"
"""The one field of a form that is no request's: the factor from the picture's size to width and height, 0 for none."""

GENERATION_LABELS = {
    "prompt": "Prompt",
    "negative_prompt": "Negative prompt",
    "sampler": "Sampling method",
    "schedule_type": "Schedule type",
    "steps": "Sampling steps",
    "width": "Width",
    "height": "Height",
    "cfg_scale": "CFG scale",
    "seed": "Seed",
    "batch_count": "Batch count",
    "batch_size": "Batch size",
}


def generation_fields(tab: str, values: FormValues) -> dict[str, Any]:
    """The keyword arguments that `Txt2Img`, `Img2Img` and `Inpaint` share, and what the section More of `tab` has.

    Raises `InvalidRequest`.
    """
    fields: dict[str, Any] = {
        name: text(values.get(name)) for name in ("prompt", "negative_prompt", "checkpoint", "sampler", "schedule_type")
    }
    for name in ("steps", "width", "height", "seed", "batch_count", "batch_size"):
        fields[name] = whole(GENERATION_LABELS[name], values.get(name))
    fields["cfg_scale"] = number(GENERATION_LABELS["cfg_scale"], values.get("cfg_scale"))
    return fields | read_more(tab, values)
