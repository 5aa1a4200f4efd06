"""A network's calls recorded as CUDA graphs: once a shape is known, one launch replaces the thousand that a UNet takes.

Owns the recordings of one network: what they are valid for, how many there are, what is copied in and out. A recording
repeats kernels on the memory they had, so it holds only while weights stay where they are; LoRAs are merged in place,
and may change between two calls. Which networks are recorded, and when that is impossible, is the workshop's to say.
"""

from __future__ import annotations

import itertools
import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

logger = logging.getLogger(__name__)

# Compiled code is made in the first call of a shape, and kernels are chosen; neither can be recorded.
WARM_UP_CALLS = 2
# Each shape's recording holds what its call works with; a picture with hires fix has two, or four with long prompts.
MOST_SHAPES = 4


class Recorder(Protocol):
    """Runs `work` once, and gives what runs the same kernels on the same memory again."""

    @property
    def held_bytes(self) -> int:
        """What its recordings keep of the device's memory."""
        ...

    def __call__(self, work: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        """What `work` returned, whose tensors the second of the pair overwrites whenever it is called."""
        ...


class CudaRecorder:
    """Records on the current CUDA device; all recordings of one recorder share memory for what lives within a call."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    @property
    def held_bytes(self) -> int:
        """See `Recorder`."""
        pieces = torch.cuda.memory_snapshot()
        return sum(piece["total_size"] for piece in pieces if tuple(piece["segment_pool_id"]) == tuple(self._pool))

    def __call__(self, work: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        """See `Recorder`."""
        graph = torch.cuda.CUDAGraph()
        # Other threads, such as that of previews, may use the card meanwhile.
        capture = torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local")
        # Where a capture cannot be begun or ended, torch goes on with the stream of the capture; we do not.
        with torch.cuda.stream(torch.cuda.current_stream()):
            try:
                with capture:
                    outcome = work()
            except BaseException:
                self._close(graph)
                raise
        return outcome, graph.replay

    def _close(self, graph: torch.cuda.CUDAGraph) -> None:
        """Tells torch's allocator that a capture is over, which torch itself does only where it could be ended.

        Otherwise every later `torch.cuda.empty_cache` fails, for it waits for captures to end.
        """
        try:
            graph.pool()
        except RuntimeError:  # no capture was ended
            device = torch.cuda.current_device()
            with suppress(RuntimeError):  # none was begun
                torch._C._cuda_endAllocateToPool(device, self._pool)
                torch._C._cuda_releasePool(device, self._pool)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Recording:
    inputs: Sequence[Tensor]
    outcome: Any
    replay: Callable[[], None]


class RecordedCalls:
    """`call` as a function of tensors and constants, recorded for each shape of its arguments; for one thread.

    The first calls of a shape go through as they are. What a recording cannot hold, or memory does not, goes through as
    it is from then on; the log says so.
    """

    def __init__(self, call: Callable[..., Any], recorder: Recorder, valid_for: Hashable) -> None:
        self.valid_for = valid_for
        self._call = call
        self._recorder = recorder
        self._records = True
        self._calls: dict[Hashable, int] = {}
        self._recordings: OrderedDict[Hashable, _Recording] = OrderedDict()

    @torch.inference_mode()
    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """What `call` returns; its tensors are the caller's own."""
        leaves, structure = tree_flatten((arguments, named))
        key = (structure, *map(_signature, leaves))
        recording = self._recordings.get(key)
        if recording is None:
            self._calls[key] = self._calls.get(key, 0) + 1
            if not self._records or self._calls[key] <= WARM_UP_CALLS:
                return self._call(*arguments, **named)
            recording = self._record(leaves, structure)
            if recording is None:
                return self._call(*arguments, **named)
            self._recordings[key] = recording
            if len(self._recordings) > MOST_SHAPES:
                self._recordings.popitem(last=False)
        self._recordings.move_to_end(key)
        for static, given in zip(recording.inputs, _tensors(leaves), strict=True):
            static.copy_(given)
        recording.replay()
        return tree_map_only(Tensor, Tensor.clone, recording.outcome)

    @property
    def held_bytes(self) -> int:
        """What the recordings keep of the device's memory."""
        return self._recorder.held_bytes if self._recordings else 0

    def _record(self, leaves: Sequence[Any], structure: Any) -> _Recording | None:
        static = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        arguments, named = tree_unflatten(static, structure)
        try:
            outcome, replay = self._recorder(lambda: self._call(*arguments, **named))
        except RuntimeError as error:
            self._records = False
            logger.warning("The network's calls are not recorded as CUDA graphs, and run as they are: %s", error)
            return None
        return _Recording(inputs=_tensors(static), outcome=outcome, replay=replay)


def set_recorded(
    network: nn.Module, *, wanted: bool, kernels: Hashable = None, recorder: Callable[[], Recorder] = CudaRecorder
) -> None:
    """Has calls of `network`, which stays on its device, recorded, or run as they are.

    Recordings stay from one request to the next while the weights lie where they lay, torch chooses kernels as it did,
    and `kernels`, whatever else decides what runs, is equal.
    """
    holder = cast("Any", network)
    if not wanted:
        if isinstance(holder._compiled_call_impl, RecordedCalls):
            holder._compiled_call_impl = None
        return
    weights = itertools.chain(network.parameters(), network.buffers())
    arithmetic = (torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision())
    valid_for = (kernels, arithmetic, *(weight.data_ptr() for weight in weights))
    now = holder._compiled_call_impl
    if not isinstance(now, RecordedCalls) or now.valid_for != valid_for:
        holder._compiled_call_impl = RecordedCalls(network._call_impl, recorder(), valid_for)


def recorded_bytes(network: nn.Module) -> int:
    """What recorded calls of `network` keep of its device's memory."""
    calls = network._compiled_call_impl
    return calls.held_bytes if isinstance(calls, RecordedCalls) else 0


def _tensors(leaves: Sequence[Any]) -> list[Tensor]:
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def _signature(leaf: Any) -> Hashable:
    return (tuple(leaf.shape), leaf.dtype, leaf.device) if isinstance(leaf, Tensor) else leaf
