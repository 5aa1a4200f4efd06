"""The grammar of emphasis and BREAK: a text that no longer changes in, weighted fragments out.

Owns no tensors: what a weight does to an embedding is the business of `webui.engine.conditioning`. The time taken is
linear in the length of the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import NamedTuple

ROUND_WEIGHT = 1.1
SQUARE_WEIGHT = 1 / ROUND_WEIGHT
WEIGHT_LIMIT = 1e6

# Each alternative begins with a character that no other one begins with, or fails after a bounded look ahead, so that
# scanning is linear: "[0-9]+(?:\.[0-9]*)?" cannot share its digits out in more than one way.
_TOKEN = re.compile(
    r"\\(?P<escaped>[()\[\]\\])"
    r"|(?P<dropped>\\)"
    r"|(?P<bracket>[()\[\]])"
    r"|:\s*(?P<weight>[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))\s*\)"
    r"|(?P<text>[^\\()\[\]:]+|:)"
)
_BREAK = re.compile(r"\bBREAK\b")
_SPECIAL = re.compile(r"([()\[\]\\])")


@dataclass(frozen=True, slots=True)
class Fragment:
    """A piece of prompt and how much it counts: 1 is normal. Weights are finite, at most `WEIGHT_LIMIT` either way."""

    text: str
    weight: float


Section = tuple[Fragment, ...]


class _Piece(NamedTuple):
    """A token: literal text, a BREAK, or a bracket that opens or closes (`closes` is the index of the opener)."""

    text: str
    opens: str = ""
    closes: int = -1
    breaks: bool = False


def parse_emphasis(text: str) -> tuple[Section, ...]:
    """Splits `text` at BREAK into sections, at least one, and these into fragments of one weight each.

    ``(x)`` counts 1.1 times as much, ``[x]`` 1.1 times less, ``(x:1.3)`` 1.3 times; they multiply when nested. Round
    and square brackets are matched independently of each other. A bracket that is never closed reaches to the end, one
    that was never opened is text. A backslash before a bracket or a backslash makes that literal; any other backslash
    is dropped, as A1111 does. Neighbours of equal weight are joined, fragments are never empty. The word BREAK in
    capitals ends a section, inside brackets too (where A1111 reads it as a word), and takes the space around it along.
    """
    pieces, factors = _match_brackets(text)
    return _join(pieces, factors)


def render_emphasis(sections: Sequence[Section]) -> str:
    """A text that `parse_emphasis` reads as `sections`, which must be such as it makes."""
    return " BREAK ".join("".join(_rendered(fragment) for fragment in section) for section in sections)


def decimal(number: float) -> str:
    """`number`, finite, as digits that read back as the same float, without an exponent, which weights may not have."""
    return f"{Decimal(repr(number)):f}"


def limited(weight: float) -> float:
    """`weight` within ±`WEIGHT_LIMIT`."""
    return max(-WEIGHT_LIMIT, min(WEIGHT_LIMIT, weight))


def _rendered(fragment: Fragment) -> str:
    # A backslash inside the word keeps a literal "BREAK", as "BRE\AK" gives it, from being read as one.
    text = _BREAK.sub("BRE\\\\AK", _SPECIAL.sub(r"\\\1", fragment.text))
    if fragment.weight == 1.0 and text == text.strip():
        return text
    return f"({text}:{decimal(fragment.weight)})"


def _match_brackets(text: str) -> tuple[list[_Piece], dict[int, float]]:
    """The pieces of `text`, and the factor of each opening bracket by its index among them."""
    pieces: list[_Piece] = []
    factors: dict[int, float] = {}
    open_brackets: dict[str, list[int]] = {"(": [], "[": []}
    for token in _TOKEN.finditer(text):
        bracket, weight = token["bracket"], token["weight"]
        if bracket in open_brackets:
            factors[len(pieces)] = ROUND_WEIGHT if bracket == "(" else SQUARE_WEIGHT
            open_brackets[bracket].append(len(pieces))
            pieces.append(_Piece("", opens=bracket))
            continue
        waiting = open_brackets["[" if bracket == "]" else "("]
        if (bracket or weight) and waiting:
            opener = waiting.pop()
            if weight:
                factors[opener] = float(weight)
            pieces.append(_Piece("", closes=opener))
        elif token["text"]:
            pieces.extend(_at_breaks(token["text"]))
        elif token["dropped"] is None:
            pieces.append(_Piece(token["escaped"] or token[0]))
    return pieces, factors


def _at_breaks(text: str) -> Iterator[_Piece]:
    # Stripping around a found word is linear; a pattern with spaces on both sides would not be.
    parts = _BREAK.split(text)
    for index, part in enumerate(parts):
        if index > 0:
            yield _Piece("", breaks=True)
            part = part.lstrip()
        yield _Piece(part.rstrip() if index < len(parts) - 1 else part)


def _join(pieces: list[_Piece], factors: dict[int, float]) -> tuple[Section, ...]:
    """Literal pieces with their weights, in sections.

    Each kind of bracket is nested in itself, so a stack of products a kind gives exact weights in linear time and
    returns to exactly 1 outside; multiplying every piece by every bracket around it would be quadratic.
    """
    products = {"(": [1.0], "[": [1.0]}
    sections: list[list[tuple[list[str], float]]] = [[]]
    for index, piece in enumerate(pieces):
        if piece.opens:
            stack = products[piece.opens]
            stack.append(limited(stack[-1] * factors[index]))
        elif piece.closes >= 0:
            products[pieces[piece.closes].opens].pop()
        elif piece.breaks:
            sections.append([])
        elif piece.text:
            weight = limited(products["("][-1] * products["["][-1])
            if sections[-1] and sections[-1][-1][1] == weight:
                sections[-1][-1][0].append(piece.text)
            else:
                sections[-1].append(([piece.text], weight))
    return tuple(tuple(Fragment("".join(texts), weight) for texts, weight in section) for section in sections)
