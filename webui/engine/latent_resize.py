"""Enlarging latents as they are, without decoding: A1111's six latent upscalers. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from webui.core.catalogue import LATENT_UPSCALERS
from webui.core.errors import InvalidRequest


class Mode(NamedTuple):
    """How torch's `interpolate` is asked."""

    mode: str
    antialias: bool = False


# By A1111's names, in the catalogue's order.
MODES: Mapping[str, Mode] = MappingProxyType(
    dict(
        zip(
            LATENT_UPSCALERS,
            (
                Mode("bilinear"),
                Mode("bilinear", antialias=True),
                Mode("bicubic"),
                Mode("bicubic", antialias=True),
                Mode("nearest"),
                Mode("nearest-exact"),
            ),
            strict=True,
        )
    )
)


def enlarge_latents(latents: Tensor, size: tuple[int, int], mode: str = "Latent") -> Tensor:
    """`latents` (N, channels, h, w), float32, at the latent `size` (h, w) by the latent upscaler `mode`.

    Smaller sizes work too. Raises `InvalidRequest` for an unknown mode.
    """
    if mode not in MODES:
        raise InvalidRequest(f"There is no latent upscaler {mode!r}; choose one of {', '.join(MODES)}.")
    asked = MODES[mode]
    if tuple(latents.shape[-2:]) == size:
        return latents
    return F.interpolate(latents, size=size, mode=asked.mode, antialias=asked.antialias)
