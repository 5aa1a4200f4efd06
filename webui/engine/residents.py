"""Which models stay loaded: the least recently used leave when main memory holds more than a budget. Knows no torch."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

Model = TypeVar("Model")

logger = logging.getLogger(__name__)


class Part(Protocol):
    """A component of a model: a text encoder, the UNet, a VAE."""

    @property
    def weight_bytes(self) -> int:
        """What it takes, wherever it is."""
        ...

    @property
    def in_main_memory(self) -> bool:
        """Whether it takes it from main memory now, and not from a graphics card's."""
        ...


@dataclass(frozen=True, slots=True)
class FixedPart:
    """A component that never moves; it counts as main memory wherever it is, so that it leaves in its turn too."""

    weight_bytes: int
    in_main_memory: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Resident(Generic[Model]):
    """A loaded model, its name, and its parts by theirs."""

    name: str
    parts: Mapping[str, Part]
    model: Model


class Residents(Generic[Model]):
    """Loaded models within a budget of main memory; what the last turn used always stays, even if it alone is larger.

    Owned by the manager, which lets one thread in at a time. `budget_bytes` is asked whenever it matters, as what is
    free changes; `released` is called after models were given up.
    """

    def __init__(self, budget_bytes: Callable[[], int], released: Callable[[], None]) -> None:
        self._budget_bytes = budget_bytes
        self._released = released
        self._known: OrderedDict[Hashable, Resident[Model]] = OrderedDict()
        self._last: set[Hashable] = set()
        self._now: set[Hashable] = set()

    def all(self) -> tuple[Resident[Model], ...]:
        """What is loaded, the least recently used first."""
        return tuple(self._known.values())

    def bytes_in_main_memory(self) -> int:
        """What all of them take there; a part that two models share counts once."""
        parts = {id(part): part for resident in self._known.values() for part in resident.parts.values()}
        return sum(part.weight_bytes for part in parts.values() if part.in_main_memory)

    @contextmanager
    def turn(self, *, beside_last: bool = False) -> Iterator[None]:
        """A block of `get`s for one request.

        After it they are what was used last (together with what was before, where `beside_last`), and others leave
        until the budget holds. When it fails, what was used before is still there and still counts as used last.
        """
        self._now = set()
        try:
            yield
            self._last = self._last | self._now if beside_last else self._now
        finally:
            self._now = set()
        self.settle()

    def get(self, key: Hashable, load: Callable[[], Resident[Model]], *, expected_bytes: int) -> Resident[Model]:
        """The model under `key`, loaded if it is not there; inside a `turn`.

        Room for `expected_bytes` is made first, but never by giving up what was used last: if `load` fails, its error
        comes through and that is still there.
        """
        known = self._known.get(key)
        if known is None:
            self._shrink(self._budget_bytes() - expected_bytes)
            known = load()
            self._known[key] = known
        self._known.move_to_end(key)
        self._now.add(key)
        return known

    def settle(self) -> None:
        """Gives up what the budget does not hold."""
        self._shrink(self._budget_bytes())

    def release_others(self) -> None:
        """Gives up all but what was used last, as when memory has run out."""
        self._shrink(-1)

    def _shrink(self, limit_bytes: int) -> None:
        released = False
        for key in [key for key in self._known if key not in self._last | self._now]:
            if self.bytes_in_main_memory() <= limit_bytes:
                break
            gone = self._known.pop(key)
            released = True
            logger.info("Released %s (%d MB)", gone.name, _megabytes(gone))
            del gone
        if released:
            self._released()


def _megabytes(resident: Resident[Model]) -> int:
    return sum(part.weight_bytes for part in resident.parts.values()) >> 20
