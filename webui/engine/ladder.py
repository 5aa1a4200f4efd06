"""What is given up for memory, one measure after another, once memory has run out: a state machine without torch.

Each failure takes one more rung, and the request goes on from its last finished batch; what was needed is remembered
for the checkpoint and the size, so that the next picture begins there. Who tries again, and how each measure is
carried out, is known elsewhere (`manager`, `workshop`, `generate`): here is only which comes next.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType

from webui.core.hires import largest_size
from webui.core.requests import DiffusionRequest

logger = logging.getLogger(__name__)


class Rung(str, Enum):
    """A measure that saves memory, the cheapest first; the value is how it is called in a sentence."""

    FREE = "with all caches emptied"
    CHUNKED = "with attention in small pieces"
    SPLIT = "with prompt and negative prompt one after the other"
    SINGLY = "with the batch's pictures one after the other"
    TILED = "with the VAE working in tiles"
    OFFLOAD = "with weights waiting in main memory"


# Where each measure helps, by the phases of a request (`webui.engine.phases`). A phase that is not among PHASES may be
# any kind of work, so all of them are tried there.
PHASES = frozenset({"load", "prepare", "encode", "denoise", "decode"})
_HELPS: Mapping[Rung, frozenset[str]] = MappingProxyType(
    {
        Rung.FREE: PHASES,
        Rung.CHUNKED: frozenset({"prepare", "denoise", "decode"}),
        Rung.SPLIT: frozenset({"denoise"}),
        Rung.SINGLY: frozenset({"denoise"}),
        Rung.TILED: frozenset({"prepare", "decode"}),
        Rung.OFFLOAD: PHASES,
    }
)


@dataclass(frozen=True, slots=True)
class Economy:
    """The measures that a request runs with; none is how everything begins."""

    rungs: frozenset[Rung] = frozenset()

    def __contains__(self, rung: Rung) -> bool:
        return rung in self.rungs

    def after(self, phase: str, *, offered: frozenset[Rung]) -> tuple[Rung, Economy] | None:
        """The next of the `offered` measures that helps where memory ran out in `phase`, and the economy with it.

        None if they are used up. As each is taken once, a request is tried again at most as often as there are rungs.
        """
        for rung in Rung:
            if rung in offered and rung not in self.rungs and (phase not in PHASES or phase in _HELPS[rung]):
                return rung, self.also(rung)
        return None

    def also(self, rung: Rung) -> Economy:
        """The economy with `rung`."""
        return Economy(self.rungs | {rung})

    def lasting(self) -> Economy:
        """What is worth remembering of it: emptied caches fill again."""
        return Economy(self.rungs - {Rung.FREE})


NOTHING_SAVED = Economy()


def offered(request: DiffusionRequest, *, offload: bool, pipeline: bool = False) -> frozenset[Rung]:
    """The measures that change anything for `request`; `offload` where the device has a memory of its own.

    A `pipeline` of diffusers' knows caches and weights that wait, with which its VAE works in tiles.
    """
    useless = {Rung.SINGLY} if request.batch_size == 1 else set[Rung]()
    if pipeline:
        useless |= {Rung.CHUNKED, Rung.SPLIT, Rung.SINGLY, Rung.TILED}
    if not offload:
        useless.add(Rung.OFFLOAD)
    return frozenset(Rung) - useless


def size_class(request: DiffusionRequest) -> int:
    """Requests of one class need about the same memory: the pixels of a batch, to the next power of two."""
    return (largest_size(request).area * request.batch_size - 1).bit_length()


class Remembered:
    """The economy that each checkpoint was last well with at each size; until the server ends. For one thread."""

    def __init__(self) -> None:
        self._known: dict[tuple[Hashable, int], Economy] = {}

    def of(self, checkpoint: Hashable, request: DiffusionRequest) -> Economy:
        """What to begin with."""
        return self._known.get((checkpoint, size_class(request)), Economy())

    def keep(self, checkpoint: Hashable, request: DiffusionRequest, economy: Economy) -> None:
        """Notes that `request` came through with `economy`."""
        lasting = economy.lasting()
        if lasting.rungs and self.of(checkpoint, request) != lasting:
            self._known[checkpoint, size_class(request)] = lasting
            logger.info("Remembered for %s: %s", largest_size(request), ", ".join(_in_order(lasting)))


def _in_order(economy: Economy) -> list[str]:
    return [rung.value for rung in Rung if rung in economy]
