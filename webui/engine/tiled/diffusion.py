"""Denoising by overlapping tiles: the UNet is asked about each tile, and its answers are joined into one prediction.

MultiDiffusion (Bar-Tal et al. 2023, arXiv 2302.08113, equation 5) takes their mean; Mixture of Diffusers (Jiménez 2023,
arXiv 2302.02412, section 3.2) weighs them by a Gaussian over each tile, so that a tile's rim, which sees least of what
lies around it, hardly counts. Guidance, masks and samplers know nothing of it: they see a UNet for any size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from webui.core.requests import TileBlend, TiledDiffusion
from webui.engine.placement import weight_of
from webui.engine.plan import working_bytes
from webui.engine.upscale.tiling import strips
from webui.hardware.memory import free_bytes

LATENT_PIXELS = 8
# The Gaussian's variance, for a tile that is 1 wide: the author's.
VARIANCE = 0.01
# More tiles at once gain nothing on any device.
MOST_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Tile:
    """Where a tile lies in the latents."""

    rows: slice
    columns: slice

    def of(self, latents: Tensor) -> Tensor:
        """The tile's part of `latents` (…, h, w), as a view."""
        return latents[..., self.rows, self.columns]


def tiles_of(height: int, width: int, tile: int, overlap: int) -> list[Tile]:
    """Tiles of at most `tile` × `tile` over `height` × `width`, neighbours sharing at least `overlap` (latents)."""
    return [
        Tile(slice(row.start, row.end), slice(column.start, column.end))
        for row in strips(height, tile, overlap, 1)
        for column in strips(width, tile, overlap, 1)
    ]


def weights_of(method: TileBlend, height: int, width: int) -> Tensor:
    """How much each place of a tile counts against other tiles, (height, width) float32 above 0."""
    if method is TileBlend.MULTIDIFFUSION:
        return torch.ones(height, width)
    column, row = (_bell(length) for length in (height, width))
    return torch.outer(column, row).float()


def _bell(length: int) -> Tensor:
    places = (torch.arange(length, dtype=torch.float64) + 0.5) / length - 0.5
    return torch.exp(-(places**2) / (2 * VARIANCE))


def in_tiles(unet: Any, wish: TiledDiffusion) -> Any:
    """`unet` (a diffusers UNet2DConditionModel) as `wish` has it: itself, or a `TiledUNet` around it."""
    if wish.method is TileBlend.NONE:
        return unet
    return TiledUNet(unet, wish.method, wish.tile // LATENT_PIXELS, wish.overlap // LATENT_PIXELS)


class TiledUNet:
    """`unet` asked tile by tile; `tile` and `overlap` are in latents.

    What goes to its first convolution beside the latents is cut with them. Latents that fit into a tile go to it as
    they are.
    """

    def __init__(self, unet: Any, method: TileBlend, tile: int, overlap: int) -> None:
        self._unet = unet
        self._method = method
        self._tile = tile
        self._overlap = overlap
        self._counts: dict[tuple[int, ...], int] = {}
        self._weights: dict[tuple[int, ...], Tensor] = {}
        self.parameters = unet.parameters

    @property
    def mid_block(self) -> nn.Module:
        """The network's own, which perturbed-attention guidance changes."""
        return self._unet.mid_block

    def __call__(
        self, sample: Tensor, timestep: Tensor, states: Tensor, *, return_dict: bool = False, **conditions: Any
    ) -> tuple[Tensor]:
        """As the network's: `sample` (N, channels, h, w) and `states` (N, tokens, width) → (N, 4, h, w), in a tuple."""
        if return_dict:
            raise ValueError("tiles are joined into a tuple")
        height, width = sample.shape[2:]
        tiles = tiles_of(height, width, self._tile, self._overlap)
        if len(tiles) == 1:
            return self._unet(sample, timestep, states, return_dict=False, **conditions)
        joined = _Mean(sample)
        at_once = self._at_once(sample)
        for start in range(0, len(tiles), at_once):
            group = tiles[start : start + at_once]
            rows = torch.cat([tile.of(sample) for tile in group])
            repeated, told = (_repeated(each, len(group)) for each in (states, conditions))
            answers = self._unet(rows, timestep, repeated, return_dict=False, **told)[0]
            for tile, answer in zip(group, answers.chunk(len(group)), strict=True):
                joined.add(tile, answer, self._weights_of(answer))
        return (joined.value(),)

    def _at_once(self, sample: Tensor) -> int:
        """How many tiles half of the free memory holds; the CPU is no faster with several.

        It stays as it is at the first step: other shapes may be compiled, recorded and timed anew.
        """
        if sample.device.type == "cpu":
            return 1
        key = tuple(sample.shape)
        if key not in self._counts:
            self._counts[key] = self._measured(sample)
        return self._counts[key]

    def _measured(self, sample: Tensor) -> int:
        pixels = (self._tile * LATENT_PIXELS) ** 2
        # The estimate is for prompt and negative prompt of one picture in half precision.
        scale = sample.shape[0] * weight_of(self._unet).dtype.itemsize / 4
        needed = int(working_bytes("unet", pixels=pixels, batch_size=1) * scale)
        return min(max(1, free_bytes(sample.device) // 2 // needed), MOST_AT_ONCE)

    def _weights_of(self, answer: Tensor) -> Tensor:
        """As `weights_of`, on the device of `answer`; a copy to a card at each step would wait for work before it."""
        key = tuple(answer.shape[2:])
        if key not in self._weights:
            self._weights[key] = weights_of(self._method, *key).to(answer.device)
        return self._weights[key]


def _repeated(value: Any, times: int) -> Any:
    """What the network is told of a batch, for `times` tiles of it."""
    if isinstance(value, Tensor):
        return value.repeat(times, *[1] * (value.ndim - 1))
    return {name: _repeated(each, times) for name, each in value.items()}


class _Mean:
    """The weighted mean of overlapping answers, kept up as they come: where they agree, it is exactly what they say."""

    def __init__(self, like: Tensor) -> None:
        self._total = torch.zeros(like.shape[2:], device=like.device)
        self._mean: Tensor | None = None

    def add(self, tile: Tile, answer: Tensor, weights: Tensor) -> None:
        """Joins in `answer` (N, channels, rows, columns) for `tile`, whose places count as `weights` says."""
        if self._mean is None:
            self._mean = answer.new_zeros(*answer.shape[:2], *self._total.shape, dtype=torch.float32)
        total = tile.of(self._total)
        total += weights
        tile.of(self._mean).lerp_(answer.float(), weights / total)

    def value(self) -> Tensor:
        """The mean of all that was added, (N, channels, h, w) float32."""
        assert self._mean is not None  # there is at least one tile
        return self._mean
