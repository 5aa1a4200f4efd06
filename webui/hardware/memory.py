"""How much memory is free, in bytes, for plans of what to load and how large a tile may be."""

from __future__ import annotations

import os
from pathlib import Path

import torch

_MEMINFO = Path("/proc/meminfo")


def free_bytes(device: torch.device) -> int:
    """Bytes that a new tensor on `device` may take now: video memory on CUDA, main memory elsewhere.

    On CUDA, what torch holds in its cache and does not use counts as free.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free_ram_bytes()


def free_ram_bytes(meminfo: Path = _MEMINFO) -> int:
    """Main memory that can be had without swapping: Linux's "MemAvailable", elsewhere the installed memory's half."""
    if meminfo.exists():
        for line in meminfo.read_text(encoding="ascii").splitlines():
            name, _, amount = line.partition(":")
            if name == "MemAvailable":
                return int(amount.split()[0]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
