"""The VAE of large pictures, layer by layer in strips of rows: exact, with memory that grows with the strip.

A convolution sees one row beyond its strip, so that strips need hardly any overlap if a layer is done for all of them
before the next begins. What a layer makes is kept in a `FeatureMap` meanwhile, whose means and deviations are those of
the whole picture: each group norm normalises by what it would see untiled. Attention runs over all keys a block at a
time. So the result is the untiled one but for rounding, and no work is done twice.

Layers are called as modules, never by their weights, which may come to the device only while a layer runs.

Nothing here decides whether a picture is large, nor knows pictures: see `webui.engine.pixels`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from webui.engine.placement import weight_of
from webui.engine.tiled.feature_map import FeatureMap, Scratch

# Queries and keys that are compared at once: their scores take 2 MiB on the CPU, whose caches like that, and 64 MiB on
# devices, which want more at once.
_CPU_BLOCK = (256, 2048)
_DEVICE_BLOCK = (2048, 8192)
_MAPS_AT_ONCE = 5

_Change = Callable[[Tensor], Tensor]


def working_bytes(vae: Any, pixels: int) -> int:
    """About what decoding so many pixels takes untiled beside `vae`'s weights; encoding takes less.

    The last level's first block sees the level below at full size: between four and five such maps were measured.
    """
    widest = max(vae.config["block_out_channels"][:2])
    return _MAPS_AT_ONCE * widest * weight_of(vae).dtype.itemsize * pixels


def decode_in_strips(vae: Any, latents: Tensor, *, tile: int, memory_bytes: int) -> Tensor:
    """What ``vae.decode(latents)`` (a diffusers AutoencoderKL) makes of (1, 4, h, w): (1, 3, 8h, 8w) on the CPU.

    Takes about the memory that decoding `tile` × `tile` pixels takes, beside the result and up to `memory_bytes` of
    main memory for what lies between two layers; more of that goes to temporary files. Raises `DiskFull`.
    """
    streamed = _Streamed(vae, tile=tile, memory_bytes=memory_bytes)
    decoder = vae.decoder
    x = streamed.fed(latents)
    if vae.post_quant_conv is not None:
        x = streamed.layer(x, vae.post_quant_conv, vae.post_quant_conv.out_channels, halo=(0, 0))
    x = streamed.convolution(x, decoder.conv_in)
    x = streamed.block(x, decoder.mid_block)
    for block in decoder.up_blocks:
        x = streamed.block(x, block)
        for upsampler in block.upsamplers or ():
            x = streamed.layer(x, upsampler, upsampler.out_channels, up=2)
    return streamed.picture(x, decoder)


def encode_in_strips(vae: Any, pixels: Tensor, *, tile: int, memory_bytes: int) -> Tensor:
    """The mean of ``vae.encode(pixels)`` (a diffusers AutoencoderKL) for (1, 3, h, w): (1, 4, h/8, w/8) on the CPU.

    Memory as in `decode_in_strips`.
    """
    streamed = _Streamed(vae, tile=tile, memory_bytes=memory_bytes)
    encoder = vae.encoder
    x = streamed.convolution(streamed.fed(pixels), encoder.conv_in)
    for block in encoder.down_blocks:
        x = streamed.block(x, block)
        for downsampler in block.downsamplers or ():
            # It adds a row and a column of zeros at the far edges itself, in pictures that repeat as well.
            x = streamed.layer(x, downsampler, downsampler.out_channels, halo=(0, 1), down=2, wraps=False)
    x = streamed.block(x, encoder.mid_block)
    made = streamed.picture(x, encoder)
    if vae.quant_conv is not None:
        weight = weight_of(vae)
        made = vae.quant_conv(made.to(weight.device)).cpu()
    return made.chunk(2, dim=1)[0]


class _Streamed:
    """One run of a VAE's layers over feature maps; each map is closed once the next is there."""

    def __init__(self, vae: Any, *, tile: int, memory_bytes: int) -> None:
        weight = weight_of(vae)
        self._device, self._dtype = weight.device, weight.dtype
        self._scratch = Scratch(memory_bytes)
        self._wraps = vae.decoder.conv_in.padding_mode == "circular"
        self._elements = tile * tile * vae.config["block_out_channels"][0]

    def fed(self, tensor: Tensor) -> FeatureMap:
        """(1, channels, h, w) as a map."""
        channels, height, width = tensor.shape[1:]
        made = self._scratch.make(channels, height, width, self._dtype)
        made.append(tensor.to(self._dtype))
        return made

    def block(self, x: FeatureMap, block: Any) -> FeatureMap:
        """A middle, upward or downward block without what changes the size: each residual block, then its attention."""
        attentions = list(getattr(block, "attentions", None) or ())
        for index, resnet in enumerate(block.resnets):
            x = self._residual(x, resnet)
            if index < len(attentions) and attentions[index] is not None:
                x = self._attention(x, attentions[index])
        return x

    def convolution(self, x: FeatureMap, layer: Any) -> FeatureMap:
        """A convolution of 3 × 3 that keeps the size."""
        return self.layer(x, layer, layer.out_channels)

    def layer(
        self,
        x: FeatureMap,
        change: _Change,
        channels: int,
        *,
        halo: tuple[int, int] = (1, 1),
        up: int = 1,
        down: int = 1,
        wraps: bool | None = None,
    ) -> FeatureMap:
        """`change` of all of `x`, which is closed."""
        made = self._scratch.make(channels, x.height * up // down, x.width * up // down, self._dtype)
        for _, _, strip in self._strips(x, change, made, halo=halo, up=up, down=down, wraps=wraps):
            made.append(strip)
        x.close()
        return made

    def picture(self, x: FeatureMap, coder: Any) -> Tensor:
        """The way out of an encoder or decoder, (1, channels, h, w) on the CPU; closes `x`."""
        channels = coder.conv_out.out_channels
        made = torch.empty(1, channels, x.height, x.width, dtype=self._dtype)
        like = FeatureMap(channels, x.height, x.width, self._dtype)
        change = self._normed(x, coder.conv_norm_out, coder.conv_act, coder.conv_out)
        for start, end, strip in self._strips(x, change, like):
            made[:, :, start:end] = strip.cpu()
        x.close()
        return made

    def _strips(
        self,
        x: FeatureMap,
        change: _Change,
        made: FeatureMap,
        *,
        halo: tuple[int, int] = (1, 1),
        up: int = 1,
        down: int = 1,
        wraps: bool | None = None,
    ) -> Iterator[tuple[int, int, Tensor]]:
        """`change` of `x` strip by strip: first row and last row of what it makes, and those rows.

        A convolution pads what it is given on all sides; at a strip's inner edges that falls on rows of the halo, which
        are cut away, and at the picture's own edges it is what it should be.
        """
        wrapped = self._wraps if wraps is None else wraps
        row_elements = max(made.channels * made.width, x.channels * x.width * down // up)
        rows = max(1, self._elements // row_elements // up) * up
        for start in range(0, made.height, rows):
            end = min(start + rows, made.height)
            first, last = start * down // up, end * down // up
            strip = change(x.around(first, last, halo, self._device, wraps=wrapped))
            above = halo[0] if wrapped else min(halo[0], first)
            yield start, end, strip[:, :, above * up : above * up + end - start]

    def _normed(self, x: FeatureMap, norm: Any, activation: Any, convolution: Any) -> _Change:
        return lambda strip: convolution(activation(x.normed(strip, norm)))

    def _residual(self, x: FeatureMap, resnet: Any) -> FeatureMap:
        """A ResnetBlock2D without a time embedding; closes `x`."""
        inner = self._scratch.make(resnet.conv1.out_channels, x.height, x.width, self._dtype)
        change = self._normed(x, resnet.norm1, resnet.nonlinearity, resnet.conv1)
        for _, _, strip in self._strips(x, change, inner):
            inner.append(strip)
        made = self._scratch.make(resnet.conv2.out_channels, x.height, x.width, self._dtype)
        change = self._normed(inner, resnet.norm2, resnet.nonlinearity, resnet.conv2)
        for start, end, strip in self._strips(inner, change, made):
            beside = x.rows(start, end, strip.device)
            if resnet.conv_shortcut is not None:
                beside = resnet.conv_shortcut(beside)
            made.append((beside + strip) / resnet.output_scale_factor)
        inner.close()
        x.close()
        return made

    def _attention(self, x: FeatureMap, attention: Any) -> FeatureMap:
        """Self attention over all places of `x`, which is closed."""

        def normed(strip: Tensor) -> Tensor:
            return x.normed(strip, attention.group_norm).flatten(2).transpose(1, 2)

        def keys_and_values(strip: Tensor) -> Tensor:
            tokens = normed(strip)
            both = torch.cat([attention.to_k(tokens), attention.to_v(tokens)], dim=2)
            return both.transpose(1, 2).unflatten(2, strip.shape[2:])

        seen = self._scratch.make(2 * attention.inner_dim, x.height, x.width, self._dtype)
        for _, _, strip in self._strips(x, keys_and_values, seen, halo=(0, 0)):
            seen.append(strip)
        made = self._scratch.make(x.channels, x.height, x.width, self._dtype)

        def attended(strip: Tensor) -> Tensor:
            found = self._found(attention.to_q(normed(strip)), seen, attention.heads)
            found = attention.to_out[1](attention.to_out[0](found)).transpose(1, 2).unflatten(2, strip.shape[2:])
            found = found + strip.to(found.device) if attention.residual_connection else found
            return found / attention.rescale_output_factor

        for _, _, strip in self._strips(x, attended, made, halo=(0, 0)):
            made.append(strip)
        seen.close()
        x.close()
        return made

    def _found(self, queries: Tensor, seen: FeatureMap, heads: int) -> Tensor:
        """What `queries` (1, N, C) find in `seen`, the keys' channels and then the values': (1, N, C).

        A running softmax over blocks of keys: Rabe & Staats 2021 (arXiv 2112.05682), section 2.
        """
        at_once, keys_at_once = _CPU_BLOCK if queries.device.type == "cpu" else _DEVICE_BLOCK
        queries = _by_head(queries * (queries.shape[-1] // heads) ** -0.5, heads)
        softmaxes = [_RunningSoftmax(block) for block in queries.split(at_once, dim=2)]
        rows = max(1, keys_at_once // seen.width)
        for start in range(0, seen.height, rows):
            tokens = seen.rows(start, min(start + rows, seen.height), queries.device).flatten(2).transpose(1, 2)
            key, value = (_by_head(part, heads) for part in tokens.chunk(2, dim=2))
            for softmax in softmaxes:
                softmax.see(key, value)
        return torch.cat([softmax.found() for softmax in softmaxes], dim=2).transpose(1, 2).flatten(2).to(self._dtype)


def _by_head(tokens: Tensor, heads: int) -> Tensor:
    """(1, N, C) → (1, heads, N, C / heads)."""
    return tokens.unflatten(-1, (heads, -1)).transpose(1, 2)


class _RunningSoftmax:
    """What a block of queries (1, heads, N, C) finds, while keys and values come block by block; sums are float32."""

    def __init__(self, queries: Tensor) -> None:
        self._queries = queries
        self._top: Tensor | None = None
        self._total = torch.zeros(1)
        self._summed = torch.zeros(1)

    def see(self, key: Tensor, value: Tensor) -> None:
        """The next block of keys and values, (1, heads, M, C)."""
        scores = (self._queries @ key.transpose(-1, -2)).float()
        highest = scores.amax(-1, keepdim=True)
        top = highest if self._top is None else torch.maximum(self._top, highest)
        weights = scores.sub_(top).exp_()
        total, summed = weights.sum(-1, keepdim=True), (weights.to(value.dtype) @ value).float()
        if self._top is not None:
            before = (self._top - top).exp_()
            total, summed = total.addcmul_(self._total, before), summed.addcmul_(self._summed, before)
        self._top, self._total, self._summed = top, total, summed

    def found(self) -> Tensor:
        """The weighted mean of all values seen."""
        return self._summed / self._total
