"""From what a training program saved to the weights that a model needs: which part of the file, under which names.

Works on any tree of dicts, lists and tuples whose leaves are tensors, whether descriptions or real ones, so that the
header of a pickle and its conversion choose alike. Pure: no torch, no files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

Leaf = TypeVar("Leaf")

# Where training programs put the weights, best first: averaged ones (ESRGAN's "params_ema") before raw ones.
_NESTS = ("state_dict", "params_ema", "params-ema", "params", "model", "net")
# A tree may share branches so that walking it takes for ever; a real one has a few thousand nodes.
_MAX_NODES = 100_000
_MAX_DEPTH = 12
_MAX_TEXT = 10_000


class TooLarge(ValueError):
    """The tree has more branches than any model."""


def weights_of(tree: Any, leaf: type[Leaf]) -> dict[str, Leaf]:
    """The tensors of the part that holds the weights, by path ("a.0.b"), {} without any; may raise `TooLarge`."""
    for name in _NESTS:
        inner = tree.get(name) if isinstance(tree, dict) else None
        if isinstance(inner, dict) and any(isinstance(value, leaf) for value in inner.values()):
            return {str(key): value for key, value in inner.items() if isinstance(value, leaf)}
    budget = iter(range(_MAX_NODES))
    return dict(_walk(tree, "", leaf, lambda: next(budget, None) is not None, _MAX_DEPTH))


def remarks_of(tree: Any) -> dict[str, str]:
    """The short texts and numbers beside the weights, such as an embedding's name and steps, as text."""
    if not isinstance(tree, dict):
        return {}
    plain = (
        (key, value) for key, value in tree.items() if isinstance(key, str) and isinstance(value, (str, int, float))
    )
    return {key: str(value) for key, value in plain if len(str(value)) <= _MAX_TEXT}


def _walk(tree: Any, path: str, leaf: type[Leaf], go_on: Callable[[], bool], depth: int) -> Iterator[tuple[str, Leaf]]:
    if not go_on():
        raise TooLarge("it has too many parts")
    if isinstance(tree, leaf):
        yield path, tree
        return
    if depth == 0:
        return
    for key, value in _branches(tree):
        yield from _walk(value, f"{path}.{key}" if path and key else path or key, leaf, go_on, depth - 1)


def _branches(tree: Any) -> Iterator[tuple[str, Any]]:
    """The named parts of a node; an inert object stands for its state, and torch's ParameterDict for its tensors."""
    if isinstance(tree, dict):
        yield from (("" if key == "_parameters" else str(key), value) for key, value in tree.items())
    elif isinstance(tree, (list, tuple)):
        yield from ((str(index), value) for index, value in enumerate(tree))
    elif hasattr(tree, "state"):
        yield "", tree.state
