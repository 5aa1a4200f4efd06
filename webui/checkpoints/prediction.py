"""What a network predicts, noise or velocity, asked of the network itself where its file says nothing.

Stable Diffusion 2's base and 768-v models have weights of the same names and shapes. At the last timestep the noisy
latents are hardly more than noise: x = a·x0 + s·e with a ≈ 0.07, s ≈ 1. A network of noise gives back e, which is its
input; one of velocity (Salimans & Ho 2022, arXiv 2202.00512) gives a·e - s·x0, a guess at the picture that owes the
input's noise a few percent. So the correlation of output and input tells them apart: near 1, or near 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from webui.checkpoints.families.base import PredictionType

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

_SIDE = 16
_TOKENS = 77
_HALFWAY = 0.5


@torch.inference_mode()
def measured_prediction(unet: UNet2DConditionModel, last_timestep: int) -> PredictionType:
    """What `unet`, of latents alone and on its device, predicts: one pass over noise at `last_timestep`, no text."""
    weight = next(unet.parameters())
    noise = torch.randn(1, unet.config["in_channels"], _SIDE, _SIDE, generator=torch.Generator().manual_seed(0))
    states = torch.zeros(1, _TOKENS, unet.config["cross_attention_dim"], dtype=weight.dtype, device=weight.device)
    timestep = torch.tensor([last_timestep], device=weight.device)
    output = unet(noise.to(weight.device, weight.dtype), timestep, states, return_dict=False)[0].float().cpu()
    correlation = torch.corrcoef(torch.stack([output.flatten(), noise.flatten()]))[0, 1]
    return "epsilon" if correlation > _HALFWAY else "v_prediction"
