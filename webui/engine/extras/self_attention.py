"""Self-attention guidance: away from a picture that is blurred wherever the network's middle looks most.

Hong et al. 2023 (arXiv 2210.00939), with a blur of sigma 1 over 9 latent pixels as in diffusers. Which way
the guidance goes is said in `webui.engine.guidance`; this finds the places and blurs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from webui.engine.denoiser import PredictionType, scalings

RADIUS = 4
SIGMA = 1.0


class Looks:
    """Where the first self attention in a network's middle looked when it last ran."""

    def __init__(self, layer: Any) -> None:
        self._layer = layer
        self._tokens: Tensor | None = None
        self._size = (0, 0)

    def measure(self, _: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        """Before the picture (B, C, h, w) becomes a row of tokens."""
        height, width = arguments[0].shape[-2:]
        self._size = height, width

    def see(self, _: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        """Before the layer attends."""
        self._tokens = arguments[0]

    def mask(self) -> Tensor:
        """(B, 1, h, w) of 1 where a place is looked at more than the average, else 0."""
        assert self._tokens is not None  # the network has run
        layer = self._layer
        query, key = (
            project(self._tokens).unflatten(-1, (layer.heads, -1)).transpose(1, 2)
            for project in (layer.to_q, layer.to_k)
        )
        weights = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).float().softmax(-1)
        return (weights.mean(1).sum(1) > 1).float().unflatten(1, self._size).unsqueeze(1)


@contextlib.contextmanager
def watched(unet: Any) -> Iterator[Looks]:
    """Within the block, the `Looks` of `unet` (a diffusers UNet2DConditionModel)."""
    attention = unet.mid_block.attentions[0]
    layer = attention.transformer_blocks[0].attn1
    looks = Looks(layer)
    handles = [attention.register_forward_pre_hook(looks.measure), layer.register_forward_pre_hook(looks.see)]
    try:
        yield looks
    finally:
        for handle in handles:
            handle.remove()


def blurred(picture: Tensor) -> Tensor:
    """`picture` (N, channels, h, w) through a Gaussian; beyond the edges it is mirrored, as far as it reaches."""
    weights = torch.exp(-0.5 * (torch.arange(-RADIUS, RADIUS + 1, device=picture.device) / SIGMA) ** 2)
    weights = (weights / weights.sum()).to(picture.dtype)
    channels = picture.shape[1]
    for dimension, padding in ((2, (0, 0, RADIUS, RADIUS)), (3, (RADIUS, RADIUS, 0, 0))):
        shape = [1, 1, 1, 1]
        shape[dimension] = -1
        mode = "reflect" if picture.shape[dimension] > RADIUS else "replicate"
        kernel = weights.reshape(shape).expand(channels, -1, -1, -1)
        picture = F.conv2d(F.pad(picture, padding, mode=mode), kernel, groups=channels)
    return picture


def degraded(x: Tensor, answer: Tensor, mask: Tensor, sigma: float, prediction_type: PredictionType) -> Tensor:
    """`x` (N, channels, h, w), a network's input, with the picture in it blurred under `mask` and its noise kept.

    `answer` is the network's to `x`. The estimate is blurred, under the noise that was predicted.
    """
    c_skip, c_out, c_in = scalings(sigma, prediction_type)
    picture = x * (c_skip / c_in) + answer * c_out
    change = (blurred(picture) - picture) * F.interpolate(mask, x.shape[-2:])
    return x + change * c_in
