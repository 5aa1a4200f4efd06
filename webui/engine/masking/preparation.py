"""A picture as mask networks want it, and their answer as a picture again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from webui.core.pictures import flattened

# The mean and deviation of ImageNet's pixels, by which most vision networks were trained.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """How a network sees a picture: stretched to a square of `side` pixels, its colours less `mean`, by `deviation`."""

    side: int
    mean: Sequence[float] = IMAGENET_MEAN
    deviation: Sequence[float] = IMAGENET_DEVIATION

    def __call__(self, image: Image.Image) -> Tensor:
        """`image` as (1, 3, side, side) float32 on the CPU."""
        small = flattened(image).resize((self.side, self.side), Image.Resampling.BILINEAR)
        pixels = np.asarray(small, dtype=np.float32) / 255
        pixels = (pixels - np.asarray(self.mean, np.float32)) / np.asarray(self.deviation, np.float32)
        return torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0).contiguous()


def as_mask(shares: Tensor, size: tuple[int, int]) -> Image.Image:
    """(h, w) in 0…1 → a picture of mode "L" and of `size`, resized bilinearly before it is rounded."""
    small = Image.fromarray(shares.detach().float().cpu().numpy())
    large = np.asarray(small.resize(size, Image.Resampling.BILINEAR))
    return Image.fromarray((large.clip(0, 1) * 255).round().astype(np.uint8))
