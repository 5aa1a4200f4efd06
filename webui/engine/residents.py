"""Which models stay in memory: the least recently used leave when their bytes exceed a budget. Knows no torch."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

Model = TypeVar("Model")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resident(Generic[Model]):
    """A model in memory: its name and family, the bytes of each component, and the model itself."""

    name: str
    family: str
    component_bytes: Mapping[str, int]
    model: Model

    @property
    def total_bytes(self) -> int:
        """All components together."""
        return sum(self.component_bytes.values())


class Residents(Generic[Model]):
    """Models in memory within `budget_bytes`; the one used last always stays, even if it alone is larger.

    Owned by the manager, which lets one thread in at a time.
    """

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self._known: OrderedDict[Hashable, Resident[Model]] = OrderedDict()

    def all(self) -> tuple[Resident[Model], ...]:
        """What is in memory, the least recently used first."""
        return tuple(self._known.values())

    def get(self, key: Hashable, load: Callable[[], Resident[Model]], *, expected_bytes: int) -> Resident[Model]:
        """The model under `key`, loaded if it is not there.

        Room for `expected_bytes` is made first, but never by giving up the model used last: if `load` fails, its error
        comes through and that one is still there.
        """
        known = self._known.get(key)
        if known is None:
            self._shrink(self.budget_bytes - expected_bytes)
            known = load()
            self._known[key] = known
        self._known.move_to_end(key)
        self._shrink(self.budget_bytes)
        return known

    def release_others(self) -> None:
        """Gives up all but the model used last, as when memory has run out."""
        self._shrink(0)

    def _shrink(self, limit_bytes: int) -> None:
        while len(self._known) > 1 and sum(resident.total_bytes for resident in self._known.values()) > limit_bytes:
            _, gone = self._known.popitem(last=False)
            logger.info("Released %s (%d MB)", gone.name, gone.total_bytes // 2**20)
