"""Weights that come to a device a group of layers at a time, while the group before them is at work.

The device holds two buffers, each as large as the largest group: one is worked with, into the other the next group is
copied. On CUDA that copy runs on a stream of its own out of page-locked memory, and the two streams wait for each other
by events alone, so the host never waits within a step. In main memory a group's weights lie one behind the other, so
each group is one copy; they keep lying so, and streaming the same module again costs nothing but the buffers.

diffusers' group offloading does much the same, by blocks or by leaves. A block of SDXL's UNet is up to 2 GB, too much
beside the work on a card of 4 GB; by leaves it fetches them in the order of its first run, and a layer that is left out
once, as perturbed attention does, breaks that chain. Here what was expected next is a guess, and a wrong one only slow.
"""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from webui.hardware.compilation import uncompiled

logger = logging.getLogger(__name__)

GROUP_BYTES = 96 * 2**20  # holds any one layer of the UNets that there are, and most of their transformer blocks
_SLAB_BYTES = 256 * 2**20  # of page-locked memory at least, which torch hands out in powers of two
_ALIGNMENT = 256
_SLOTS = 2


@contextmanager
def streamed(module: nn.Module, device: torch.device, *, group_bytes: int = GROUP_BYTES) -> Iterator[None]:
    """Inside the block, layers of `module` have their weights on `device` only while they run; inputs follow there.

    Groups are the largest modules of at most `group_bytes`, and single layers that are larger. What two groups share,
    and what lies between them, stays on `device` throughout. The weights, all in main memory, are there again after the
    block; what is done to them inside it must be done between two runs. Inside it nothing of `module` runs compiled.
    """
    # Not in inference mode: tensors made in it may not be changed outside it.
    with torch.inference_mode(False), torch.no_grad():
        groups = _packed(list(_groups(module, group_bytes)), device)
        belt = _Belt(groups, device)
        residents = [(tensor, tensor.data) for tensor in _between(module, groups)]
    with uncompiled(module), ExitStack() as stack:
        stack.callback(belt.close)
        for tensor, here in residents:
            stack.callback(setattr, tensor, "data", here)
            with torch.inference_mode(False):
                tensor.data = here.to(device)
        for number, group in enumerate(groups):
            for layer in group.hooked:
                belt.watch(layer, number, stack)
        yield


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """Layers that come together: `tensors` in the order in which they lie in `flat` (bytes) from `offsets` on.

    `hooked` is the module that holds them, and those within that own tensors: any of them may be called by itself.
    """

    hooked: Sequence[nn.Module]
    tensors: Sequence[Tensor]
    offsets: Sequence[int]
    flat: Tensor

    def views(self, buffer: Tensor) -> list[Tensor]:
        """The tensors as they are when `flat` has been copied to the beginning of `buffer`."""
        return [_view(buffer, offset, tensor) for offset, tensor in zip(self.offsets, self.tensors, strict=True)]

    def point_to(self, views: Sequence[Tensor]) -> None:
        """Lets the layers work with `views`."""
        for tensor, view in zip(self.tensors, views, strict=True):
            tensor.data = view


class _Belt:
    """Brings groups to two buffers on `device`, and lets layers work there; one thread."""

    def __init__(self, groups: Sequence[_Group], device: torch.device) -> None:
        self._groups = groups
        self._device = device
        size = max((group.flat.nbytes for group in groups), default=0)
        self._buffers = [torch.empty(size, dtype=torch.uint8, device=device) for _ in range(min(_SLOTS, len(groups)))]
        self._lane = _CudaLane(device) if device.type == "cuda" else _Lane()
        self._there = [[group.views(buffer) for buffer in self._buffers] for group in groups]
        self._here = [group.views(group.flat) for group in groups]
        self._lies: list[int | None] = [None] * len(self._buffers)  # the group in each buffer
        self._depth = [0] * len(groups)
        self._after: dict[int, int] = {}  # the group that followed each when it last ran
        self._last: int | None = None

    def watch(self, layer: nn.Module, number: int, stack: ExitStack) -> None:
        """Has group `number` there whenever `layer` runs, until `stack` is closed."""

        def arrive(
            _layer: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            self._enter(number)
            return tuple(map(self._moved, inputs)), {name: self._moved(value) for name, value in named.items()}

        def leave(_layer: nn.Module, _inputs: object, _output: object) -> None:
            self._exit(number)

        stack.callback(layer.register_forward_pre_hook(arrive, with_kwargs=True).remove)
        stack.callback(layer.register_forward_hook(leave, always_call=True).remove)

    def close(self) -> None:
        """After the last run: nothing may still be on its way into a buffer that is given up."""
        self._lane.finish()

    def _moved(self, value: Any) -> Any:
        return value.to(self._device) if isinstance(value, Tensor) else value

    def _enter(self, number: int) -> None:
        self._depth[number] += 1
        if self._depth[number] > 1:  # a layer within a group that is there
            return
        slot = self._slot_of(number)
        self._lane.await_arrival(slot)
        self._groups[number].point_to(self._there[number][slot])
        if self._last is not None:
            self._after[self._last] = number
        self._last = number
        following = self._after.get(number)
        if following is not None and following not in self._lies:
            self._fetch(following, (slot + 1) % len(self._buffers))

    def _exit(self, number: int) -> None:
        self._depth[number] -= 1
        if self._depth[number] == 0:
            self._lane.release(self._lies.index(number))
            self._groups[number].point_to(self._here[number])

    def _slot_of(self, number: int) -> int:
        """The buffer in which the group lies; it is fetched if it was not expected."""
        if number not in self._lies:
            before = self._lies.index(self._last) if self._last in self._lies else -1
            self._fetch(number, (before + 1) % len(self._buffers))
        return self._lies.index(number)

    def _fetch(self, number: int, slot: int) -> None:
        flat = self._groups[number].flat
        self._lane.copy(self._buffers[slot][: flat.nbytes], flat, slot)
        self._lies[slot] = number


class _Lane:
    """How groups travel where copies are done at once: nobody has to wait for anybody."""

    def copy(self, target: Tensor, source: Tensor, slot: int) -> None:  # noqa: ARG002  # of use to the other lane
        """Copies `source` into buffer `slot`, once what worked with the buffer is done."""
        target.copy_(source)

    def await_arrival(self, slot: int) -> None:
        """Holds later work until buffer `slot` is filled."""

    def release(self, slot: int) -> None:
        """Says that the work with buffer `slot` has been handed over to the device."""

    def finish(self) -> None:
        """Holds later work until all copies are done."""


class _CudaLane(_Lane):
    """A stream beside the one that computes. An event that was never recorded holds nobody up."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._side = torch.cuda.Stream(device)
        self._side.wait_stream(torch.cuda.current_stream(device))  # the buffers' memory may still be worked with
        self._arrived = [torch.cuda.Event() for _ in range(_SLOTS)]
        self._released = [torch.cuda.Event() for _ in range(_SLOTS)]

    def copy(self, target: Tensor, source: Tensor, slot: int) -> None:
        """See `_Lane`."""
        self._side.wait_event(self._released[slot])
        with torch.cuda.stream(self._side):
            target.copy_(source, non_blocking=True)
            self._arrived[slot].record(self._side)

    def await_arrival(self, slot: int) -> None:
        """See `_Lane`."""
        torch.cuda.current_stream(self._device).wait_event(self._arrived[slot])

    def release(self, slot: int) -> None:
        """See `_Lane`."""
        self._released[slot].record(torch.cuda.current_stream(self._device))

    def finish(self) -> None:
        """See `_Lane`."""
        torch.cuda.current_stream(self._device).wait_stream(self._side)


def _groups(module: nn.Module, group_bytes: int) -> Iterator[list[nn.Module]]:
    """What comes to the device together: each list is a module and those within it that own tensors.

    `module` itself is none unless it has no parts, for many are called by those; nor are lists of layers, which nobody
    calls.
    """
    children = list(module.children())
    if not children:
        yield [module]
    for child in children:
        is_called = type(child).forward is not nn.Module.forward
        if is_called and sum(tensor.nbytes for tensor in _all(child)) <= group_bytes:
            yield [
                child,
                *(layer for layer in child.modules() if layer is not child and any(True for _ in _own(layer))),
            ]
        else:
            yield from _groups(child, group_bytes)


def _between(module: nn.Module, groups: Sequence[_Group]) -> list[Tensor]:
    """What modules own that are too large to be a group, and weights of several groups: they stay on the device."""
    grouped = {id(tensor) for group in groups for tensor in group.tensors}
    return [tensor for tensor in _all(module) if id(tensor) not in grouped]


def _packed(groups: Sequence[Sequence[nn.Module]], device: torch.device) -> list[_Group]:
    """The groups with the tensors of each one behind the other in main memory, page-locked if `device` wants that."""
    slabs = _Slabs(pinned=device.type == "cuda")
    owned = [{id(tensor): tensor for layer in hooked for tensor in _own(layer)} for hooked in groups]
    owners = Counter(itertools.chain.from_iterable(owned))
    made: list[_Group] = []
    for hooked, own in zip(groups, owned, strict=True):
        tensors = [tensor for tensor in own.values() if owners[id(tensor)] == 1]
        if tensors:
            made.append(_pack(hooked, tensors, slabs))
    return made


def _pack(hooked: Sequence[nn.Module], tensors: Sequence[Tensor], slabs: _Slabs) -> _Group:
    ends = list(itertools.accumulate(_rounded(tensor.nbytes) for tensor in tensors))
    offsets = [0, *ends[:-1]]
    first = tensors[0]
    base = first.data_ptr()
    lies_so = all(tensor.data_ptr() == base + at for tensor, at in zip(tensors, offsets, strict=True))
    whole = torch.empty(0, dtype=torch.uint8).set_(first.untyped_storage())
    start = base - whole.data_ptr()
    if lies_so and start + ends[-1] <= whole.nbytes and (first.is_pinned() or not slabs.pinned):
        return _Group(hooked=hooked, tensors=tensors, offsets=offsets, flat=whole[start : start + ends[-1]])
    flat = slabs.take(ends[-1])
    group = _Group(hooked=hooked, tensors=tensors, offsets=offsets, flat=flat)
    views = group.views(flat)
    for tensor, view in zip(tensors, views, strict=True):
        view.copy_(tensor)
    group.point_to(views)
    return group


class _Slabs:
    """Main memory in large pieces, page-locked if `pinned` and the system allows it."""

    def __init__(self, *, pinned: bool) -> None:
        self.pinned = pinned
        self._rests: list[Tensor] = []

    def take(self, size: int) -> Tensor:
        """`size` bytes that are in use until the last tensor on them is gone."""
        place = next((number for number, rest in enumerate(self._rests) if rest.nbytes >= size), len(self._rests))
        if place == len(self._rests):
            self._rests.append(self._new(size))
        taken, self._rests[place] = self._rests[place][:size], self._rests[place][size:]
        return taken

    def _new(self, size: int) -> Tensor:
        if self.pinned:
            try:
                whole = max(_SLAB_BYTES, 1 << (size - 1).bit_length())
                return torch.empty(whole, dtype=torch.uint8, pin_memory=True)
            except RuntimeError as error:  # the system has a limit to page-locked memory
                logger.warning("Weights are streamed from ordinary memory, which is slower: %s", error)
                self.pinned = False
        return torch.empty(size, dtype=torch.uint8)


def _view(buffer: Tensor, offset: int, like: Tensor) -> Tensor:
    """A tensor as `like`, also in its strides, at `offset` bytes of `buffer`."""
    piece = buffer[offset : offset + like.nbytes].view(like.dtype)
    return piece.as_strided(like.shape, like.stride(), piece.storage_offset())


def _rounded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _own(layer: nn.Module) -> Iterator[Tensor]:
    return itertools.chain(layer.parameters(recurse=False), layer.buffers(recurse=False))


def _all(module: nn.Module) -> Iterator[Tensor]:
    return itertools.chain(module.parameters(), module.buffers())
