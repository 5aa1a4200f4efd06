"""Pictures that repeat without a seam: every convolution sees the picture's other side beyond each edge.

Attention knows no places, so circular padding alone makes UNet and VAE answer a shifted input with a shifted output.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn


@contextlib.contextmanager
def tiled(module: nn.Module) -> Iterator[None]:
    """Within the block, the convolutions of `module` pad with what lies at the opposite edge.

    One that pads nothing stays as it is: 1 × 1, and the VAE encoder's halvings, which add their one row themselves.
    """
    before: list[tuple[Any, str]] = [
        (layer, layer.padding_mode)
        for layer in module.modules()
        if isinstance(layer, nn.Conv2d) and layer.padding != (0, 0)
    ]
    try:
        for layer, _ in before:
            layer.padding_mode = "circular"
        yield
    finally:
        for layer, own in before:
            layer.padding_mode = own
