"""FreeU: the UNet's backbone amplified, the low frequencies of its skip connections damped.

Si et al. 2023 (arXiv 2309.11497). Where the upward path joins the two, at four and at two times the model's
first width, as the authors' code chooses the places.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from webui.core.requests import Extras

RADIUS = 1  # as in the authors' code: frequencies nearer to zero than this, in each direction, are low


def amplified(backbone: Tensor, factor: float) -> Tensor:
    """`backbone` (N, C, h, w) with the first half of its channels multiplied by `factor` where its mean is high.

    The mean over the channels, brought to 0…1 for each picture, says where.
    """
    mean = backbone.mean(1, keepdim=True)
    low, high = mean.amin((2, 3), keepdim=True), mean.amax((2, 3), keepdim=True)
    where = (mean - low) / (high - low).clamp_min(torch.finfo(mean.dtype).tiny)
    first, second = backbone.tensor_split([backbone.shape[1] // 2], dim=1)
    return torch.cat([first * (where * (factor - 1) + 1), second], dim=1)


def damped(skip: Tensor, factor: float) -> Tensor:
    """`skip` (N, C, h, w) with its lowest frequencies multiplied by `factor`, in float32."""
    height, width = skip.shape[-2:]
    spectrum = torch.fft.fftshift(torch.fft.fft2(skip.float()), dim=(-2, -1))
    rows = slice(max(0, height // 2 - RADIUS), height // 2 + RADIUS)
    columns = slice(max(0, width // 2 - RADIUS), width // 2 + RADIUS)
    spectrum[..., rows, columns] *= factor
    return torch.fft.ifft2(torch.fft.ifftshift(spectrum, dim=(-2, -1))).real.to(skip.dtype)


@contextlib.contextmanager
def freeu(unet: Any, extras: Extras) -> Iterator[None]:
    """Within the block, `unet` (a diffusers UNet2DConditionModel) joins its paths by the factors of `extras`."""
    width = unet.config.block_out_channels[0]
    factors = {4 * width: (extras.freeu_b1, extras.freeu_s1), 2 * width: (extras.freeu_b2, extras.freeu_s2)}
    with contextlib.ExitStack() as stack:
        # A block's input is [backbone, skip] side by side, and the backbone is what the block before it made.
        made = unet.config.block_out_channels[-1]
        for block in unet.up_blocks:
            for resnet in block.resnets:
                if made in factors:
                    handle = resnet.register_forward_pre_hook(_joining(made, *factors[made]))
                    stack.callback(handle.remove)
                made = resnet.out_channels
        yield


def _joining(channels: int, backbone_factor: float, skip_factor: float) -> Any:
    """What changes a block's joined input, of which the first `channels` are the backbone's; a factor 1 is not used."""

    def hook(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        backbone, skip = arguments[0].tensor_split([channels], dim=1)
        if backbone_factor != 1:
            backbone = amplified(backbone, backbone_factor)
        if skip_factor != 1:
            skip = damped(skip, skip_factor)
        return torch.cat([backbone, skip], dim=1), *arguments[1:]

    return hook
