"""What a form holds, as the fields of a request: numbers may come as None, as text or with a fraction.

Pure functions. They only settle kinds; ranges are the business of `webui.core.validation`, so that every edge of the
program gives the same sentence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from webui.core.errors import InvalidRequest

FormValues = Mapping[str, Any]
"""A form's values by the names of the request's fields, and "checkpoint" from the menu above the tabs."""

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


def number(what: str, value: object) -> float:
    """`value` as a finite number; raises `InvalidRequest` naming `what` where it is none."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    raise InvalidRequest(f"{what} is {value!r}, which is not a number; fill it in." if value else f"{what} is empty.")


def whole(what: str, value: object) -> int:
    """`value` as a whole number; raises `InvalidRequest` naming `what` where it has a fraction or is none."""
    found = number(what, value)
    if not found.is_integer():
        raise InvalidRequest(f"{what} is {found:g}; a whole number is needed.")
    return int(found)


def text(value: object) -> str:
    """`value` as text; an empty field is ""."""
    return value if isinstance(value, str) else ""


def generation_fields(values: FormValues) -> dict[str, Any]:
    """The keyword arguments that `Txt2Img`, `Img2Img` and `Inpaint` share."""
    fields: dict[str, Any] = {
        name: text(values.get(name)) for name in ("prompt", "negative_prompt", "checkpoint", "sampler", "schedule_type")
    }
    for name in ("steps", "width", "height", "seed", "batch_count", "batch_size"):
        fields[name] = whole(GENERATION_LABELS[name], values.get(name))
    fields["cfg_scale"] = number(GENERATION_LABELS["cfg_scale"], values.get("cfg_scale"))
    return fields
