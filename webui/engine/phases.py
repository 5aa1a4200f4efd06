"""A stop-watch for the phases of a request, which also says in which of them it broke."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Phases:
    """Adds up the seconds spent under each name; `broken` is the innermost phase that an error came out of, or ""."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.broken = ""

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Counts the block towards `name`, also when it is left by an error."""
        started = time.perf_counter()
        try:
            yield
        except Exception:
            self.broken = self.broken or name
            raise
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
