"""Classifier-free guidance: prompt and negative prompt through the UNet in one batch, then away from the negative.

Owns how many rows a step feeds the UNet; it must not know about noise levels or samplers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from webui.engine.denoiser import Predict
from webui.engine.placement import weight_of


def guided(unet: Any, prompt: Tensor, negative: Tensor, cfg_scale: float, batch: int) -> Predict:
    """The guided prediction of `unet` (a diffusers UNet2DConditionModel) for `batch` pictures.

    `prompt` and `negative` are (1, tokens, width) of one shape. ``negative + cfg_scale · (prompt - negative)`` is
    Ho & Salimans 2022 (arXiv 2207.12598), equation 6, with A1111's scale (theirs plus one). At scale 1 the negative
    prompt cancels out, so only the prompt is worked on: half the work. Predictions come back in float32.
    """
    dtype = weight_of(unet).dtype
    if cfg_scale == 1.0:
        states = prompt.to(dtype).repeat(batch, 1, 1)

        def predict_plain(x: Tensor, timestep: Tensor) -> Tensor:
            return unet(x.to(dtype), timestep, states, return_dict=False)[0].float()

        return predict_plain

    states = torch.cat([prompt.repeat(batch, 1, 1), negative.repeat(batch, 1, 1)]).to(dtype)

    def predict(x: Tensor, timestep: Tensor) -> Tensor:
        rows = x.to(dtype).repeat(2, 1, 1, 1)
        wanted, unwanted = unet(rows, timestep, states, return_dict=False)[0].float().chunk(2)
        return torch.lerp(unwanted, wanted, cfg_scale)

    return predict
