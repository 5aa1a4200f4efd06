"""Cutting a picture into overlapping tiles, and the weights that join them again without a seam. Pure numbers."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Strip:
    """Where a tile lies along one axis, in pixels of the input, and how much it counts for each output pixel."""

    start: int
    end: int
    weights: Tensor  # ((end - start) · scale,) float32 in 0…1


def strips(length: int, tile: int, overlap: int, scale: int) -> list[Strip]:
    """Tiles of at most `tile` pixels over an axis of `length`, neighbours sharing at least `overlap` pixels.

    Tile 0, or one that holds everything, gives one strip. For every output pixel the weights of all strips sum to 1:
    strip i counts ``up_i - up_{i+1}``, where ``up_i`` climbs from 0 to 1 across the middle half of what strips i-1 and
    i share. The outer quarters, which see least of what lies around a tile, count for nothing.
    """
    if tile == 0 or tile >= length:
        return [Strip(0, length, torch.ones(length * scale))]
    count = math.ceil((length - overlap) / (tile - overlap))
    starts = [round(index * (length - tile) / (count - 1)) for index in range(count)]
    centres = (torch.arange(length * scale, dtype=torch.float64) + 0.5) / scale
    climbs = [torch.ones_like(centres)]
    for before, start in itertools.pairwise(starts):
        middle, half = (before + tile + start) / 2, max(overlap / 4, 1e-6)
        climbs.append(((centres - middle + half) / (2 * half)).clamp(0, 1))
    climbs.append(torch.zeros_like(centres))
    return [
        Strip(start, start + tile, (climbs[i] - climbs[i + 1])[start * scale : (start + tile) * scale].float())
        for i, start in enumerate(starts)
    ]
