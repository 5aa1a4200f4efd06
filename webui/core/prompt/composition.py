"""Whole prompts: comments gone, "AND" read, each part a tree of prompt editing.

The network is asked about each part by itself and guidance adds up where they pull (Liu et al. 2022, "Compositional
Visual Generation with Composable Diffusion Models", arXiv 2206.01714).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from webui.core.prompt.editing import Pieces, parse_editing, render_editing
from webui.core.prompt.emphasis import decimal, limited
from webui.core.prompt.texts import strip_comments

_AND = re.compile(r"\bAND\b")
_WEIGHT = re.compile(r"\s*([+-]?(?:[0-9]+\.?|[0-9]*\.[0-9]+))\s*")


@dataclass(frozen=True, slots=True)
class Part:
    """One of the prompts that AND joins, and its weight: 1 is normal, negative pushes away; finite."""

    pieces: Pieces
    weight: float = 1.0


def parse_prompt(text: str) -> tuple[Part, ...]:
    """The parts of a prompt, at least one.

    The word AND in capitals divides a prompt wherever it stands, inside brackets too. A part that ends in ":" and a
    number has that weight; as in A1111 this holds for a prompt without AND as well. Space around a part goes.
    """
    return tuple(_part(part) for part in _AND.split(strip_comments(text)))


def parse_negative(text: str) -> Pieces:
    """The tree of a negative prompt, in which AND is a word like any other."""
    return parse_editing(strip_comments(text))


def render_prompt(parts: Sequence[Part]) -> str:
    """A text that `parse_prompt` reads as `parts`, which must be such as it makes."""
    return " AND ".join(_rendered(part) for part in parts)


def _part(text: str) -> Part:
    body, weight = _divided(text.strip())
    return Part(parse_editing(body), weight)


def _divided(text: str) -> tuple[str, float]:
    body, colon, number = text.rpartition(":")
    match = _WEIGHT.fullmatch(number) if colon else None
    return (body.rstrip(), limited(float(match[1]))) if match else (text, 1.0)


def _rendered(part: Part) -> str:
    text = render_editing(part.pieces)
    if part.weight == 1.0 and _divided(text) == (text, 1.0):
        return text
    return f"{text}:{decimal(part.weight)}"
