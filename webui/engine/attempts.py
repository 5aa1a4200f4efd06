"""A request that is tried again, from its last finished batch, where memory ran out or a network overflowed.

Knows neither models nor devices: how to run the request with given measures, and how to free memory, it is handed.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Generator
from contextlib import closing

from webui.core.errors import OutOfMemory, Overflow
from webui.core.events import Event, ImageReady, Notice, Started, Step
from webui.core.hires import largest_size
from webui.core.requests import DiffusionRequest
from webui.engine.ladder import Economy, Rung
from webui.engine.phases import Phases
from webui.hardware.memory import is_out_of_memory

logger = logging.getLogger(__name__)

# (measures, first batch, stop-watch) → the events of the request from that batch on.
Run = Callable[[Economy, int, Phases], Generator[Event, None, None]]


def persevere(
    request: DiffusionRequest,
    run: Run,
    *,
    start_batch: int,
    economy: Economy,
    offered: frozenset[Rung],
    release: Callable[[], None],
    widen: Callable[[], str],
) -> Generator[Event, None, Economy]:
    """The events of `run`, begun again after each failure with one more of the `offered` measures than `economy`.

    `release` frees what memory it can. `widen` gives the network a wider precision and says its name, "" if there is
    none. Nothing is told twice, but for the steps of the batch in which it failed. Returns the economy that sufficed;
    raises `OutOfMemory` when no measure is left, `Overflow` when no precision is, and whatever else `run` raises.
    """
    told = _Told(request, start_batch)
    while True:
        phases = Phases()
        try:
            with closing(run(economy, told.next_batch, phases)) as events:
                for event in events:
                    if told.is_new(event):
                        yield event
            return economy
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            logger.warning("Memory ran out (%s): %s", phases.broken or "between two phases", error)
            step = economy.after(phases.broken, offered=offered)
            traceback.clear_frames(error.__traceback__)  # they hold the tensors that were in the way
            if step is None:
                release()
                raise OutOfMemory(_too_large(request)) from error
            rung, economy = step
            sentence = f"Memory ran out; the picture is tried again {rung.value}."
        except Overflow:
            wider = widen()
            if not wider:
                raise
            sentence = f"The model overflowed in half precision; the picture is tried again in {wider}."
        release()
        yield Notice(text=sentence)


def _too_large(request: DiffusionRequest) -> str:
    return (
        f"Memory ran out at {largest_size(request)} with batch size {request.batch_size}, whatever was tried;"
        " choose a smaller size or batch, or close other programs."
    )


class _Told:
    """What of a request has been passed on."""

    def __init__(self, request: DiffusionRequest, start_batch: int) -> None:
        self._size = request.images_per_batch
        self._batch = start_batch
        self._images: set[int] = set()
        self._once: set[Event] = set()
        self._started = False

    @property
    def next_batch(self) -> int:
        """The batch to go on with: the one that was being worked on, or the one after it if it is whole."""
        places = range(self._batch * self._size, (self._batch + 1) * self._size)
        return self._batch + 1 if all(place in self._images for place in places) else self._batch

    def is_new(self, event: Event) -> bool:
        """Whether `event` is passed on; it then has been."""
        if isinstance(event, Started):
            fresh, self._started = not self._started, True
            return fresh
        if isinstance(event, Notice):
            fresh = event not in self._once
            self._once.add(event)
            return fresh
        if isinstance(event, ImageReady):
            fresh = event.index not in self._images
            self._images.add(event.index)
            return fresh
        if isinstance(event, Step):
            self._batch = max(self._batch, event.batch)
        return True
