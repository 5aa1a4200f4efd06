"""Prompt editing: texts that change from step to step. A text in, a tree out; the tree and a step give plain text.

    scheduled = "[" [before ":"] after ":" number "]"    ; "after" from that step on
    alternate = "[" option 1*("|" option) "]"            ; the next option at each step

Anything in brackets that is neither, and is closed as it was opened, is text for `webui.core.prompt.emphasis`, which
also reads escapes: here they only keep a character from being grammar.

Reading is one pass over the tokens. Groups close from the inside out and each item is put into a group once, so it is
linear; groups nested deeper than `MAX_DEPTH` are text, so that walking a tree needs no deep recursion.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

MAX_DEPTH = 50

_TOKEN = re.compile(r"\\.|[^\\()\[\]:|]+|[()\[\]:|\\]")
_NUMBER = re.compile(r"\s*([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)\s*")
_CLOSES = {")": "(", "]": "["}


@dataclass(frozen=True, slots=True)
class Scheduled:
    """`before` up to and including the step `when`, then `after`.

    `when` is a number as written: with a point it is a share of the steps, without one a step.
    """

    before: Pieces
    after: Pieces
    when: str


@dataclass(frozen=True, slots=True)
class Alternate:
    """One of `options`, at least two, in turn at each step."""

    options: tuple[Pieces, ...]


Piece = str | Scheduled | Alternate
Pieces = tuple[Piece, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """A run of a sampler as prompt editing counts it: `steps`, and in a second pass (hires fix) those of the first.

    The second pass goes on counting: its shares are 1.0…2.0 and its steps follow those `earlier`.
    """

    steps: int
    earlier: int | None = None

    def step(self, when: str) -> int:
        """The step, 0…`steps`, that a number as written stands for in this pass."""
        value = float(when)
        if "." in when:
            value = (value - (self.earlier is not None)) * self.steps
        else:
            value -= self.earlier or 0
        return int(max(0, min(self.steps, value)))


class TextUntil(NamedTuple):
    """A text that holds up to and including step `last`."""

    last: int
    text: str


@dataclass(slots=True)
class _Group:
    """A bracket that is open: where its content begins among the items, and where its own separators are."""

    bracket: str
    start: int
    colons: list[int] = field(default_factory=list)
    bars: list[int] = field(default_factory=list)
    sound: bool = True
    depth: int = 0


def parse_editing(text: str) -> Pieces:
    """The tree of `text`; () for "". Adjacent texts are joined and never empty.

    As in A1111, a text with a "|" that stands in no alternation, or with a backslash before a line's end or at the
    text's, is not edited at all.
    """
    items: list[Piece] = []
    top = _Group("", 0)
    groups = [top]
    for token in _TOKEN.findall(text):
        group = groups[-1]
        if token in ("(", "["):
            groups.append(_Group(token, len(items) + 1))
        elif token in _CLOSES:
            if group.bracket == _CLOSES[token]:
                _close(groups, items, token)
                continue
            # No bracket that is open now can be closed any more: this one would stand unmatched in it.
            if any(opened.bars for opened in groups):
                return _joined([text])
            del groups[1:]
        elif token == ":":
            group.colons.append(len(items))
        elif token == "|":
            group.bars.append(len(items))
        elif token == "\\":
            return _joined([text])
        items.append(token)
        if top.bars:
            return _joined([text])
    if any(group.bars for group in groups):
        return _joined([text])
    return _joined(items)


def _close(groups: list[_Group], items: list[Piece], bracket: str) -> None:
    """Ends the innermost group: its items become one node, or stay where they are as text."""
    group, outer = groups.pop(), groups[-1]
    node = _node(group, items)
    if node is not None:
        items[group.start - 1 :] = [node]
        outer.depth = max(outer.depth, group.depth + 1)
        return
    items.append(bracket)
    outer.depth = max(outer.depth, group.depth)
    if group.bars:
        groups[0].bars += group.bars  # outside any alternation
    plain = len(group.colons) <= (1 if group.bracket == "(" else 0)
    # A group that is none taints those around it: they would hold a bracket that is mere text.
    outer.sound = outer.sound and group.sound and plain


def _node(group: _Group, items: list[Piece]) -> Scheduled | Alternate | None:
    if group.bracket != "[" or not group.sound or group.depth >= MAX_DEPTH:
        return None
    separators = group.bars or group.colons
    if (group.bars and group.colons) or not separators:
        return None
    edges = [group.start - 1, *separators, len(items)]
    parts = [items[left + 1 : right] for left, right in itertools.pairwise(edges)]
    if group.bars:
        return Alternate(tuple(_joined(part) for part in parts))
    last = parts.pop()
    number = _NUMBER.fullmatch(last[0]) if len(last) == 1 and isinstance(last[0], str) else None
    if number is None or len(parts) > 2:
        return None
    return Scheduled(_joined(parts[0]) if len(parts) == 2 else (), _joined(parts[-1]), number[1])


def _joined(items: Sequence[Piece]) -> Pieces:
    """`items` with neighbouring texts joined."""
    pieces: list[Piece] = []
    texts: list[str] = []
    for item in (*items, None):
        if isinstance(item, str):
            texts.append(item)
            continue
        if any(texts):
            pieces.append("".join(texts))
        texts.clear()
        if item is not None:
            pieces.append(item)
    return tuple(pieces)


def render_editing(pieces: Pieces) -> str:
    """The text that `parse_editing` reads as `pieces`, which must be such as it makes."""
    parts: list[str] = []
    for piece in pieces:
        if isinstance(piece, str):
            parts.append(piece)
        elif isinstance(piece, Alternate):
            parts.append(f"[{'|'.join(map(render_editing, piece.options))}]")
        else:
            parts.append(f"[{render_editing(piece.before)}:{render_editing(piece.after)}:{piece.when}]")
    return "".join(parts)


def texts_by_step(pieces: Pieces, run: Pass) -> tuple[TextUntil, ...]:
    """The texts that `pieces` become during `run`, in rising order, the last one up to ``run.steps``.

    A1111's rule: steps of the tree count from 1, those of the sampler from 0, and a text holds while the sampler's
    step is at most its last one. So the first text holds for one step more than its number says.
    """
    ends = {run.steps}
    _collect_ends(pieces, run, ends)
    spans: list[TextUntil] = []
    for end in sorted(ends):
        text = _text_at(pieces, end, run)
        if spans and spans[-1].text == text:
            spans.pop()
        spans.append(TextUntil(end, text))
    return tuple(spans)


def _collect_ends(pieces: Pieces, run: Pass, ends: set[int]) -> None:
    for piece in pieces:
        if isinstance(piece, Scheduled):
            end = run.step(piece.when)
            if end >= 1:
                ends.add(end)
            _collect_ends(piece.before, run, ends)
            _collect_ends(piece.after, run, ends)
        elif isinstance(piece, Alternate):
            ends.update(range(1, run.steps + 1))
            for option in piece.options:
                _collect_ends(option, run, ends)


def _text_at(pieces: Pieces, step: int, run: Pass) -> str:
    """The text at `step`, counted from 1."""
    parts: list[str] = []
    for piece in pieces:
        if isinstance(piece, str):
            parts.append(piece)
        elif isinstance(piece, Alternate):
            parts.append(_text_at(piece.options[(step - 1) % len(piece.options)], step, run))
        else:
            parts.append(_text_at(piece.before if step <= run.step(piece.when) else piece.after, step, run))
    return "".join(parts)
