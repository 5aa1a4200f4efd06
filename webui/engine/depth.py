"""How far away everything in a picture is, as Stable Diffusion 2's depth model takes it beside the latents."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from webui.engine.placement import placed

if TYPE_CHECKING:
    from transformers import DPTForDepthEstimation

LATENT_PIXELS = 8
# Less than this share of the depth itself is no difference in it, but rounding.
_FLAT = 1e-3


@torch.inference_mode()
def depth_map(network: DPTForDepthEstimation, pixels: Tensor, device: torch.device) -> Tensor:
    """`pixels` (1, 3, h, w), -1…1 → depth (1, 1, h/8, w/8) float32 on `device`, -1 for the farthest, 1 the nearest.

    The network sees the picture in the square that it was trained on, and its map is stretched from its own least to
    its own greatest, all as in diffusers' StableDiffusionDepth2ImgPipeline. A picture without depth is all
    about -1.
    """
    side = cast("int", network.config.image_size)  # `webui.checkpoints.load_depth` has no others
    seen = pixels.to(device, torch.float32)
    if tuple(seen.shape[2:]) != (side, side):
        seen = F.interpolate(seen, (side, side), mode="bicubic", antialias=True).clamp(-1, 1)
    with placed(network, device):
        depth = network(seen).predicted_depth[:, None].float()
    small = tuple(length // LATENT_PIXELS for length in pixels.shape[2:])
    depth = F.interpolate(depth, small, mode="bicubic", align_corners=False)
    least, greatest = depth.amin(), depth.amax()
    span = torch.maximum(greatest - least, _FLAT * greatest.abs()).clamp(min=torch.finfo(torch.float32).tiny)
    return 2 * (depth - least) / span - 1
