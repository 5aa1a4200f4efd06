"""A linear map from latents to colours, fitted to an autoencoder when it is loaded, for previews of a forming picture.

The decoder paints a few small random latents, and least squares find the map from each latent pixel to the mean colour
of the square that it became. It takes as long as decoding one picture of about 200 × 200 pixels, always gives the same
numbers, and draws none from torch's own generator.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from webui.checkpoints.families.base import LatentToRgb

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

# Sides of the latents, and of the patches of one kind in them: pictures have areas of all sizes.
_SIDE, _PATCHES, _ROUNDS = 8, (1, 2, 4, 8), 3
# Added to the diagonal, in parts of the number of samples, so that channels without effect get no weight.
_RIDGE = 1e-3


@torch.inference_mode()
def fit_colours(pipeline: DiffusionPipeline) -> LatentToRgb | None:
    """The map for the pipeline's latents of near unit deviation; None where its autoencoder is of another kind.

    The autoencoder must be in main memory.
    """
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    vae = pipeline.components.get("vae")
    if not isinstance(vae, AutoencoderKL) or vae.config["out_channels"] != 3:
        return None
    latents = _random_latents(vae.config["latent_channels"])
    colours = F.adaptive_avg_pool2d(_decoded(vae, latents), _SIDE)
    rows = latents.permute(0, 2, 3, 1).flatten(0, 2).double()
    rows = torch.cat([rows, torch.ones(len(rows), 1, dtype=torch.float64)], dim=1)
    wanted = colours.permute(0, 2, 3, 1).flatten(0, 2).double()
    ridge = _RIDGE * len(rows) * torch.eye(rows.shape[1], dtype=torch.float64)
    found = torch.linalg.solve(rows.T @ rows + ridge, rows.T @ wanted)
    if not found.isfinite().all():
        return None
    weights = [cast("tuple[float, float, float]", tuple(row)) for row in found.tolist()]
    return LatentToRgb(tuple(weights[:-1]), weights[-1])


def _random_latents(channels: int) -> Tensor:
    """Latents (N, channels, side, side) of unit deviation, in patches of each size."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for patch in _PATCHES:
        for _ in range(_ROUNDS):
            numbers = torch.randn(1, channels, _SIDE // patch, _SIDE // patch, generator=generator)
            made.append(F.interpolate(numbers, scale_factor=patch, mode="nearest"))
    return torch.cat(made)


def _decoded(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Pictures in about -1…1, float32: of each latent alone, for a decoder's norms look at whole pictures."""
    weight = next(vae.parameters())
    unscaled = latents / vae.config["scaling_factor"] + (vae.config["shift_factor"] or 0.0)
    unscaled = unscaled.to(dtype=weight.dtype)
    return torch.cat([vae.decode(each, return_dict=False)[0].float() for each in unscaled.split(1)])
