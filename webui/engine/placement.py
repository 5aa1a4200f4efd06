"""Where modules are while they work: brought to the device for a block, as `webui.engine.plan` says, and back after it.

Where everything fits, modules stay on the device and a block costs nothing. Where it does not, their weights wait in
main memory and only copies go to the device, so that nothing has to be copied back.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from webui.engine.plan import Need, Place, visit
from webui.engine.streaming import streamed
from webui.hardware.attention.fusion import set_fused
from webui.hardware.graphs import set_recorded
from webui.hardware.low_bits import FULL, main_kind
from webui.hardware.memory import free_bytes

CPU = torch.device("cpu")
# What a visitor leaves free on the device for its own work, where nobody says how much that is.
VISITOR_WORKING_BYTES = 512 * 2**20


def weight_of(module: nn.Module) -> Tensor:
    """Any one weight, for its device and dtype: what diffusers' own properties walk all modules to find."""
    return next(module.parameters())


@dataclass(frozen=True, slots=True, kw_only=True)
class ModulePart:
    """A module as `webui.engine.residents` counts it; its weights are counted once, for that takes a walk.

    `kind` is the format in which most of them lie, see `webui.hardware.low_bits`.
    """

    module: nn.Module
    weight_bytes: int
    kind: str = FULL

    @classmethod
    def of(cls, module: nn.Module) -> ModulePart:
        """The part that `module` is."""
        return cls(module=module, weight_bytes=weight_bytes(module), kind=main_kind(module))

    @property
    def in_main_memory(self) -> bool:
        """Whether its weights are there and not on a device."""
        return weight_of(self.module).device.type == "cpu"


def weight_bytes(module: nn.Module) -> int:
    """What the weights of `module` take, wherever they are, and what goes with them."""
    return sum(tensor.nbytes for tensor in itertools.chain(module.parameters(), module.buffers()))


@contextmanager
def placed(
    module: nn.Module,
    device: torch.device,
    *,
    working_bytes: int = VISITOR_WORKING_BYTES,
    place: Place = Place.VISITING,
) -> Iterator[None]:
    """`module`, whose weights are all in one place, at work on `device` inside the block.

    If it waits in main memory, copies of its weights go to the device: all of them where they fit beside
    `working_bytes`, else, or where `place` says so, group by group. What is done to the copies is gone after the block,
    but for another dtype.
    """
    if weight_of(module).device == device:
        yield
        return
    need = Need(weight_bytes=weight_bytes(module), working_bytes=working_bytes)
    whole = place is not Place.STREAMED and visit(need, free_bytes=free_bytes(device)) is Place.VISITING
    with copied(module, device) if whole else streamed(module, device):
        yield


@contextmanager
def copied(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Copies of all weights and buffers of `module` on `device` inside the block, the originals after it.

    Weights that were given another dtype inside it keep that.
    """
    originals = _to_device(itertools.chain(module.parameters(), module.buffers()), device)
    try:
        yield
    finally:
        _put_back(originals)


def _to_device(tensors: Iterator[Tensor], device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """Moves what `tensors` hold, and returns each with what it held."""
    originals: list[tuple[Tensor, Tensor]] = []
    try:
        # Not in inference mode: tensors made in it may not be changed outside it.
        with torch.inference_mode(False):
            for tensor in tensors:
                here = tensor.data
                tensor.data = here.to(device, non_blocking=True)
                originals.append((tensor, here))
    except BaseException:  # memory ran out halfway
        _put_back(originals)
        raise
    return originals


def _put_back(originals: list[tuple[Tensor, Tensor]]) -> None:
    for tensor, data in originals:
        widened = tensor.dtype != data.dtype  # as a VAE is that overflowed
        tensor.data = tensor.data.to(data.device) if widened else data


def bytes_on_device(parts: Iterable[ModulePart]) -> int:
    """What `parts` take outside main memory."""
    return sum(part.weight_bytes for part in parts if not part.in_main_memory)


def bring(parts: Mapping[str, ModulePart], places: Mapping[str, Place], device: torch.device) -> None:
    """Moves each part to where it waits between requests: those that are kept to `device`, others to main memory."""
    kept = {name for name, place in places.items() if place is Place.KEPT}
    for name in sorted(parts, key=lambda name: name in kept):  # what leaves makes room for what comes
        move(parts[name].module, device if name in kept else CPU)


def move(module: nn.Module, device: torch.device) -> None:
    """Moves `module` for good; if memory runs out on the way, it is wholly in main memory.

    What was recorded of its calls is given up, and weights that lay in one piece come apart: both would hold memory on
    the device, for weights that lie elsewhere.
    """
    if weight_of(module).device == device:
        return
    set_recorded(module, wanted=False)
    set_fused(module, wanted=False)
    try:
        module.to(device)
    except BaseException:
        module.to(CPU)
        raise
