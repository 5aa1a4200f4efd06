"""The tags by which a prompt asks for LoRAs, as A1111 reads them: `<lora:name:weight>`.

    tag      = "<" ("lora" | "lyco") ":" name *(":" argument) ">"
    argument = number | ("te" | "unet" | "dyn") "=" number

Unnamed numbers are, in order, the weight in the text encoders, the weight in the UNet (the same as the first where it
is left out) and the rank to keep. Tags are taken out before emphasis and prompt editing are read, so they count for
the whole run wherever they stand. What does not parse is left in the prompt as text. Linear in the text's length.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

_TAG = re.compile(r"<(?:lora|lyco):([^<>:]+)((?::[^<>:]*)*)>", re.IGNORECASE)
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")
_POSITIONS = ("te", "unet", "dyn")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraTag:
    """A LoRA that a prompt names. Weights are finite; `rank`, where given, keeps only so many of its first ranks."""

    name: str
    text_weight: float = 1.0
    unet_weight: float = 1.0
    rank: int | None = None


def take_loras(prompt: str) -> tuple[str, tuple[LoraTag, ...]]:
    """`prompt` without its LoRA tags, and those in order. Nothing else of the text changes, spaces included."""
    tags: list[LoraTag] = []

    def take(match: re.Match[str]) -> str:
        tag = _tag(match[1].strip(), match[2].split(":")[1:])
        if tag is None:
            return match[0]
        tags.append(tag)
        return ""

    return _TAG.sub(take, prompt), tuple(tags)


def _tag(name: str, arguments: list[str]) -> LoraTag | None:
    """The tag that a name and its arguments make; None when one of them is not understood or said twice."""
    values: dict[str, float] = {}
    position = 0
    for argument in arguments:
        key, equals, text = argument.rpartition("=")
        if not equals:
            if position == len(_POSITIONS):
                return None
            key, position = _POSITIONS[position], position + 1
        key, text = key.strip().lower(), text.strip()
        if key not in _POSITIONS or key in values or not _NUMBER.fullmatch(text):
            return None
        values[key] = float(text)
    rank = values.get("dyn")
    if not name or not all(math.isfinite(value) for value in values.values()):
        return None
    if rank is not None and (rank < 1 or not rank.is_integer()):
        return None
    text_weight = values.get("te", 1.0)
    return LoraTag(
        name=name,
        text_weight=text_weight,
        unet_weight=values.get("unet", text_weight),
        rank=None if rank is None else int(rank),
    )
