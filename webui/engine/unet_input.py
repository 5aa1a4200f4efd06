"""What some models' UNets take beside the noisy latents: a mask and the picture under it, or a picture to edit.

Made once a request, from its picture and mask; guidance puts it before the first convolution. It must not know how
guidance weighs it, nor what becomes of the latents themselves.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from webui.checkpoints.loaded import LoadedCheckpoint
from webui.core.errors import UserError
from webui.core.geometry import Size
from webui.engine.pixels import encode

# The published autoencoders' latents are an eighth of the picture's side.
_LATENT_PIXELS = 8
_HALF = 128

_CANNOT = {
    "depth": "wants a depth map beside the latents, which Atelier cannot make yet",
    "low_res": "makes small pictures larger and cannot make one from words",
}


def beside_latents(
    checkpoint: LoadedCheckpoint,
    size: Size,
    *,
    pixels: Tensor | None = None,
    mask: Image.Image | None = None,
    hidden: float = 1.0,
    soft: bool = False,
) -> Tensor | None:
    """What `checkpoint`'s UNet takes beside the latents, (1, channels, h/8, w/8); None where it takes nothing.

    `pixels` (1, 3, h, w), -1…1, is the picture of `size` that the request starts from, None where there is none;
    `mask` (L, 255 = remake) what of it is remade, None for all of it; `hidden` is the share of what lies under it that
    inpainting models do not get to see, and with `soft` they see the mask's greys. Raises `UserError` for a model that
    wants something else.
    """
    if checkpoint.input == "latents":
        return None
    if checkpoint.input in _CANNOT:
        raise UserError(
            f"The checkpoint {checkpoint.info.name!r} {_CANNOT[checkpoint.input]}; choose another checkpoint."
        )
    if checkpoint.input == "edit":
        return _picture_to_edit(checkpoint, size, pixels)
    return _masked_picture(checkpoint, size, pixels, mask, hidden, soft)


def _picture_to_edit(checkpoint: LoadedCheckpoint, size: Size, pixels: Tensor | None) -> Tensor:
    """The picture's latents without the scaling factor, as instruct-pix2pix was trained (Brooks et al. 2022, arXiv
    2211.09800, and its ddpm_edit.py); zeros stand for no picture, which it was trained with as well.
    """
    if pixels is None:
        return torch.zeros(1, checkpoint.vae.config["latent_channels"], *_latent(size))
    return encode(checkpoint.vae, pixels, 1.0)


def _masked_picture(
    checkpoint: LoadedCheckpoint,
    size: Size,
    pixels: Tensor | None,
    mask: Image.Image | None,
    hidden: float,
    soft: bool,
) -> Tensor:
    """The mask, then the latents of the picture with grey under it: what CompVis' inpainting model was trained with.

    Without a mask everything is remade, and no picture shows through. With less than all of it hidden, the picture
    shows through the grey (A1111's conditional mask weight).
    """
    if pixels is None or mask is None:
        cover = torch.ones(1, 1, size.height, size.width)
        seen = torch.zeros(1, 3, size.height, size.width)
    else:
        grey = torch.from_numpy(np.array(mask))[None, None]
        cover = grey / 255 if soft else (grey >= _HALF).float()
        seen = pixels * (1 - hidden * cover)
    latents = encode(checkpoint.vae, seen, checkpoint.scaling_factor)
    return torch.cat([F.interpolate(cover, _latent(size), mode="nearest").to(latents.device), latents], dim=1)


def _latent(size: Size) -> tuple[int, int]:
    return size.height // _LATENT_PIXELS, size.width // _LATENT_PIXELS
