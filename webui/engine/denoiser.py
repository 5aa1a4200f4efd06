"""From what a network predicts to a picture without noise: `Denoiser` and its two makings.

A sampler sees only ``denoiser(x, sigma)``. What the network predicts (noise or velocity), how it wants its input
scaled, what a mask keeps in place: all of that ends here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from webui.engine.schedules import SigmaTable

PredictionType = Literal["epsilon", "v_prediction"]

# (scaled noisy latents (N, 4, h, w), timestep (1,)) → prediction (N, 4, h, w)
Predict = Callable[[Tensor, Tensor], Tensor]


class Denoiser(Protocol):
    """Estimates the clean latents."""

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """`x` (N, 4, h, w) = clean latents + sigma · noise → estimate of the clean latents, same shape."""
        ...


def scalings(sigma: float, prediction_type: PredictionType) -> tuple[float, float, float]:
    """(c_skip, c_out, c_in) of ``denoised = c_skip · x + c_out · network(c_in · x)``.

    Networks of the variance-preserving kind see ``x / sqrt(1 + sigma²)`` (Karras et al. 2022, table 1). For
    epsilon, ``denoised = x - sigma · epsilon``; for v (Salimans & Ho 2022, arXiv 2202.00512, appendix D),
    ``v = alpha · epsilon - s · x0`` with ``alpha = 1 / sqrt(1 + sigma²)`` and ``s = sigma · alpha`` gives
    ``denoised = x / (1 + sigma²) - v · sigma / sqrt(1 + sigma²)``.
    """
    total = 1 + sigma * sigma
    root = math.sqrt(total)
    if prediction_type == "epsilon":
        return 1.0, -sigma, 1 / root
    return 1 / total, -sigma / root, 1 / root


class DiscreteDenoiser:
    """A network trained on a table of timesteps, as a `Denoiser` at any sigma.

    The timesteps of `sigmas` are put on `device` at once, so that no step waits for a copy; other sigmas work too.
    """

    def __init__(
        self,
        predict: Predict,
        table: SigmaTable,
        prediction_type: PredictionType,
        *,
        sigmas: Sequence[float],
        device: torch.device,
    ) -> None:
        self._predict = predict
        self._table = table
        self._prediction_type: PredictionType = prediction_type
        self._device = device
        timesteps = torch.tensor([[table.timestep(sigma)] for sigma in sigmas], dtype=torch.float32, device=device)
        self._timesteps = dict(zip(sigmas, timesteps.unbind(0), strict=True))

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """See `Denoiser`."""
        timestep = self._timesteps.get(sigma)
        if timestep is None:
            timestep = torch.tensor([self._table.timestep(sigma)], dtype=torch.float32, device=self._device)
        c_skip, c_out, c_in = scalings(sigma, self._prediction_type)
        prediction = self._predict(x * c_in, timestep)
        if c_skip == 1.0:
            return torch.add(x, prediction, alpha=c_out)
        return torch.add(x * c_skip, prediction, alpha=c_out)


def masked(denoiser: Denoiser, kept: Tensor, mask: Tensor) -> Denoiser:
    """`denoiser` with the latents `kept` (N, 4, h, w) wherever `mask` (1, 1, h, w; 0…1) is 0.

    As every sampler moves towards the denoised estimate, the part outside the mask ends exactly at `kept`.
    """

    def keep_outside(x: Tensor, sigma: float) -> Tensor:
        return torch.lerp(kept, denoiser(x, sigma), mask)

    return keep_outside
