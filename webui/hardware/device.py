"""Which device computes, and in which precision."""

from __future__ import annotations

import torch


def choose_device() -> torch.device:
    """The first CUDA device, else Apple's GPU, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", 0)
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def choose_dtype(device: torch.device) -> torch.dtype:
    """float16 on a GPU, as the community's checkpoints are made for; float32 on the CPU, where it is the exact one."""
    return torch.float32 if device.type == "cpu" else torch.float16


def set_fast_arithmetic(device: torch.device, *, wanted: bool) -> None:
    """Lets a CUDA card round products of float32 to TF32 and cuDNN time its algorithms, or neither; others have none.

    Both may change a picture's last bits, the second from one start of the program to the next.
    """
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if wanted else "highest")
        torch.backends.cudnn.benchmark = wanted


def wider_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype | None:
    """What to compute in where `dtype` overflowed: bfloat16, if the card computes in it, then float32, then nothing."""
    if dtype == torch.float16 and choose_pipeline_dtype(device) == torch.bfloat16:
        return torch.bfloat16
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else None


def choose_pipeline_dtype(device: torch.device) -> torch.dtype:
    """As `choose_dtype`, but bfloat16 where the card computes in it: today's transformers overflow float16."""
    has_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if has_bfloat16 else choose_dtype(device)


def describe(device: torch.device) -> str:
    """A device's name for people: the graphics card's own, or "CPU"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return {"cpu": "CPU", "mps": "Apple GPU"}.get(device.type, device.type)
