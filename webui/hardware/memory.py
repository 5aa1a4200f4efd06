"""How much memory is free, in bytes, for plans of what to load and how large a tile may be."""

from __future__ import annotations

import ctypes
import functools
import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")
_OUT_OF_MEMORY_WORDS = (
    *("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory"),
    *("cublas_status_alloc_failed", "cudnn_status_alloc_failed", "device_allocation_failed"),  # NVIDIA's libraries
)


def free_bytes(device: torch.device) -> int:
    """Bytes that a new tensor on `device` may take now: video memory on CUDA, main memory elsewhere.

    On CUDA, what torch holds in its cache and does not use counts as free, and no more than `limit` allows. What
    recorded graphs work with is not free: nothing else is served from their pools.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        used = torch.cuda.memory_allocated(device) + _idle_bytes_of_graphs(device)
        allowed = int(torch.cuda.get_per_process_memory_fraction(device) * total)
        return min(free + torch.cuda.memory_reserved(device) - used, allowed - used)
    return free_ram_bytes()


def _idle_bytes_of_graphs(device: torch.device) -> int:
    """What the private pools of CUDA graphs hold beside tensors in use."""
    return sum(
        segment["total_size"] - segment["allocated_size"]
        for segment in torch.cuda.memory_snapshot()
        if segment["device"] == device.index and tuple(segment["segment_pool_id"]) != (0, 0)
    )


def limit(device: torch.device, allowed_bytes: int) -> None:
    """Lets this process take at most `allowed_bytes` on a CUDA device, 0 for all of it; others have no such bound."""
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        fraction = min(1.0, allowed_bytes / total) if allowed_bytes else 1.0
        torch.cuda.set_per_process_memory_fraction(fraction, device)


def free_ram_bytes(meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP) -> int:
    """Main memory that can be had without swapping: Linux's "MemAvailable", elsewhere the installed memory's half.

    In a container, no more than its limit leaves.
    """
    if meminfo.exists():
        for line in meminfo.read_text(encoding="ascii").splitlines():
            name, _, amount = line.partition(":")
            if name == "MemAvailable":
                return min(int(amount.split()[0]) * 1024, _left_in_container(cgroup))
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _left_in_container(cgroup: Path) -> int:
    """What the limit of a control group (version 2) leaves; files in the page cache give way, so they count as free."""
    try:
        limit = int((cgroup / "memory.max").read_text(encoding="ascii"))
        used = int((cgroup / "memory.current").read_text(encoding="ascii"))
        lines = (cgroup / "memory.stat").read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):  # no container, no limit ("max"), or another kind of control group
        return sys.maxsize
    cached = sum(int(line.split()[1]) for line in lines if line.startswith(("inactive_file ", "active_file ")))
    return max(0, limit - used + cached)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch (on any device) or Python says that memory ran out; torch's CPU allocator has no type for it."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return any(words in str(error).lower() for words in _OUT_OF_MEMORY_WORDS)


def give_back(device: torch.device) -> None:
    """Returns what dropped modules took to the system, which allocators would otherwise keep for later.

    That is true of page-locked memory too, from which weights were streamed.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch._C._host_emptyCache()
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    """Glibc's malloc_trim, None with another C library."""
    if sys.platform != "linux":
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)
