"""The grammar of emphasis in prompts, as A1111 reads it: text in, weighted fragments out.

Owns no tensors: what a weight does to an embedding is the business of `webui.engine.conditioning`. Every text is
accepted, because an artist's prompt is never "wrong": what does not parse is taken literally. The time taken is linear
in the length of the text, whatever it holds.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Fragment:
    """A piece of prompt and how much it counts: 1 is normal. Weights are finite, at most `WEIGHT_LIMIT` either way."""

    text: str
    weight: float


class _Piece(NamedTuple):
    """A token: literal text, or a bracket that opens or closes (`closes` is the index of the opener)."""

    text: str
    opens: str = ""
    closes: int = -1


def parse_prompt(text: str) -> tuple[Fragment, ...]:
    """Splits `text` into fragments of one weight each, in order; never empty, "" gives one empty fragment.

    ``(x)`` counts 1.1 times as much, ``[x]`` 1.1 times less, ``(x:1.3)`` 1.3 times; they multiply when nested. Round
    and square brackets are matched independently of each other. A bracket that is never closed reaches to the end, one
    that was never opened is text. A backslash before a bracket or a backslash makes that literal; any other backslash
    is dropped, as A1111 does. Neighbours of equal weight are joined.
    """
    pieces, factors = _match_brackets(text)
    return _join(_weigh(pieces, factors))


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
        elif token["dropped"] is None:
            pieces.append(_Piece(token["escaped"] or token[0]))
    return pieces, factors


def _weigh(pieces: list[_Piece], factors: dict[int, float]) -> list[Fragment]:
    """Literal pieces with their weights.

    Each kind of bracket is nested in itself, so a stack of products a kind gives exact weights in linear time and
    returns to exactly 1 outside; multiplying every piece by every bracket around it would be quadratic.
    """
    products = {"(": [1.0], "[": [1.0]}
    fragments: list[Fragment] = []
    for index, piece in enumerate(pieces):
        if piece.opens:
            stack = products[piece.opens]
            stack.append(_limited(stack[-1] * factors[index]))
        elif piece.closes >= 0:
            products[pieces[piece.closes].opens].pop()
        else:
            fragments.append(Fragment(piece.text, _limited(products["("][-1] * products["["][-1])))
    return fragments


def _limited(weight: float) -> float:
    return max(-WEIGHT_LIMIT, min(WEIGHT_LIMIT, weight))


def _join(fragments: list[Fragment]) -> tuple[Fragment, ...]:
    joined: list[tuple[list[str], float]] = []
    for fragment in fragments:
        if joined and joined[-1][1] == fragment.weight:
            joined[-1][0].append(fragment.text)
        else:
            joined.append(([fragment.text], fragment.weight))
    return tuple(Fragment("".join(texts), weight) for texts, weight in joined) or (Fragment("", 1.0),)
