"""Which device computes, and in which precision."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch

from webui.core.errors import UserError

AUTOMATIC = "auto"
_DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
)


def choose_device() -> torch.device:
    """The first CUDA device, else Apple's GPU, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", 0)
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def choose_dtype(device: torch.device, precision: str = AUTOMATIC) -> torch.dtype:
    """What networks compute in on `device` under the setting `precision`.

    By itself, float16 on a GPU, as the community's checkpoints are made for, bfloat16 on a processor that multiplies in
    it, and float32 on others. Raises `UserError` for a precision that the device lacks.
    """
    refused = why_not(precision, device)
    if refused:
        raise UserError(refused)
    if precision != AUTOMATIC:
        return _DTYPES[precision]
    if device.type == "cpu":
        return torch.bfloat16 if multiplies_bfloat16() else torch.float32
    return torch.float16


def why_not(precision: str, device: torch.device) -> str:
    """Why networks cannot compute in `precision` on `device`, as a sentence; "" where they can."""
    if precision == "float16" and device.type == "cpu":
        return "The precision float16 is for graphics cards, and this computes on the CPU; choose bfloat16 or float32."
    if precision == "bfloat16" and device.type == "cuda" and not _card_has_bfloat16():
        return f"{describe(device)} does not compute in the precision bfloat16; choose float16 or float32."
    return ""


def multiplies_bfloat16() -> bool:
    """Whether this processor has instructions for products of bfloat16 (AMX, AVX-512 BF16)."""
    known = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")  # not public, so that any may go
    return any(getattr(torch.cpu, name, bool)() for name in known)


def choose_picture_dtype(device: torch.device, precision: str = AUTOMATIC) -> torch.dtype:
    """As `choose_dtype`, for networks from pixels to pixels: float32 in place of bfloat16.

    That rounds by half of one of a picture's 256 levels.
    """
    dtype = choose_dtype(device, precision)
    return torch.float32 if dtype == torch.bfloat16 else dtype


def set_fast_arithmetic(device: torch.device, *, wanted: bool) -> None:
    """Lets a CUDA card round products of float32 to TF32 and cuDNN time its algorithms, or neither; others have none.

    Both may change a picture's last bits, the second from one start of the program to the next.
    """
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if wanted else "highest")
        torch.backends.cudnn.benchmark = wanted


def wider_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype | None:
    """What to compute in where `dtype` overflowed: bfloat16, if the card computes in it, then float32, then nothing."""
    if dtype == torch.float16 and device.type == "cuda" and _card_has_bfloat16():
        return torch.bfloat16
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else None


def choose_pipeline_dtype(device: torch.device, precision: str = AUTOMATIC) -> torch.dtype:
    """As `choose_dtype`, but by itself bfloat16 where a card computes in it: transformers of today overflow float16."""
    if precision == AUTOMATIC and device.type == "cuda" and _card_has_bfloat16():
        return torch.bfloat16
    return choose_dtype(device, precision)


def _card_has_bfloat16() -> bool:
    return torch.cuda.is_bf16_supported(including_emulation=False)


def describe(device: torch.device) -> str:
    """A device's name for people: the graphics card's own, or "CPU"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return {"cpu": "CPU", "mps": "Apple GPU"}.get(device.type, device.type)
