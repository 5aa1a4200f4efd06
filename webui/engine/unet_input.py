"""What some models' UNets take beside the noisy latents: a mask and the picture under it, a picture to edit, its depth.

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
from webui.engine.depth import depth_map
from webui.engine.pixels import encode
from webui.engine.placement import weight_of

# The published autoencoders' latents are an eighth of the picture's side.
_LATENT_PIXELS = 8
_HALF = 128

_ENLARGES = "makes small pictures larger and cannot make one from words"


def beside_latents(
    checkpoint: LoadedCheckpoint,
    size: Size,
    *,
    pixels: Tensor | None = None,
    mask: Image.Image | None = None,
    hidden: float = 1.0,
    soft: bool = False,
    tile: int | None = None,
) -> Tensor | None:
    """What `checkpoint`'s UNet takes beside the latents, (1, channels, h/8, w/8); None where it takes nothing.

    `pixels` (1, 3, h, w), -1…1, is the picture of `size` that the request starts from, None where there is none;
    `mask` (L, 255 = remake) what of it is remade, None for all of it; `hidden` is the share of what lies under it that
    inpainting models do not get to see, and with `soft` they see the mask's greys. `tile` is `encode`'s. Raises
    `UserError` for a model that wants something else.
    """
    if checkpoint.input == "latents":
        return None
    if checkpoint.input == "low_res":
        raise UserError(f"The checkpoint {checkpoint.info.name!r} {_ENLARGES}; choose another checkpoint.")
    if checkpoint.input == "depth":
        return _depth_of(checkpoint, pixels)
    if checkpoint.input == "edit":
        return _picture_to_edit(checkpoint, size, pixels, tile)
    if pixels is None or mask is None:
        # Everything is remade, and no picture shows through.
        cover = torch.ones(1, 1, size.height, size.width)
        return _masked_picture(checkpoint, torch.zeros(1, 3, size.height, size.width), cover, tile)
    grey = torch.from_numpy(np.array(mask))[None, None]
    cover = grey / 255 if soft else (grey >= _HALF).float()
    return _masked_picture(checkpoint, pixels * (1 - hidden * cover), cover, tile)


def _depth_of(checkpoint: LoadedCheckpoint, pixels: Tensor | None) -> Tensor:
    if pixels is None:
        raise UserError(
            f"The checkpoint {checkpoint.info.name!r} keeps to the depth of a picture; give it one to start from, in"
            " img2img, or choose another checkpoint."
        )
    if checkpoint.depth is None:
        raise UserError(
            f"The checkpoint {checkpoint.info.name!r} has come without its depth network (depth_model in a single file,"
            " depth_estimator in a folder); download the whole model, or choose another checkpoint."
        )
    return depth_map(checkpoint.depth, pixels, weight_of(checkpoint.vae).device)


def _picture_to_edit(checkpoint: LoadedCheckpoint, size: Size, pixels: Tensor | None, tile: int | None) -> Tensor:
    """The picture's latents without the scaling factor, as instruct-pix2pix was trained (Brooks et al. 2022, arXiv
    2211.09800, and its ddpm_edit.py); zeros stand for no picture, which it was trained with as well.
    """
    if pixels is None:
        return torch.zeros(1, checkpoint.vae.config["latent_channels"], *_latent(size))
    return encode(checkpoint.vae, pixels, 1.0, tile=tile)


def _masked_picture(checkpoint: LoadedCheckpoint, seen: Tensor, cover: Tensor, tile: int | None) -> Tensor:
    """The mask `cover` (1, 1, h, w), then the latents of the picture `seen`, in which grey stands for what is hidden.

    That is what CompVis' inpainting model was trained with. Less than all hidden, so that the picture shows through
    the grey, is A1111's conditional mask weight.
    """
    latents = encode(checkpoint.vae, seen, checkpoint.scaling_factor, tile=tile)
    small = F.interpolate(cover, tuple(side // _LATENT_PIXELS for side in cover.shape[-2:]), mode="nearest")
    return torch.cat([small.to(latents.device), latents], dim=1)


def _latent(size: Size) -> tuple[int, int]:
    return size.height // _LATENT_PIXELS, size.width // _LATENT_PIXELS
