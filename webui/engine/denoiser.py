"""From what a network predicts to a picture without noise: `Denoiser` and its makings.

A sampler sees only ``denoiser(x, sigma)``. What the network predicts (noise, velocity or flow), how it wants its input
scaled, what a mask keeps in place: all of that ends here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

PredictionType = Literal["epsilon", "v_prediction", "flow"]


class Prediction(NamedTuple):
    """What guidance makes of a network's answers: the guided one, and that to the negative prompt alone.

    Both are (N, channels, h, w). Where the negative prompt was left out they are the same tensor.
    """

    guided: Tensor
    negative: Tensor


# (scaled noisy latents (N, channels, h, w), timestep (1,), sigma) → prediction of the same shape.
Predict = Callable[[Tensor, Tensor, float], Prediction]


class Denoiser(Protocol):
    """Estimates the clean latents."""

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """`x` (N, channels, h, w) = clean latents + sigma · noise → estimate of the clean latents, same shape."""
        ...

    def both(self, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """The same estimate, and the one that the negative prompt alone leads to."""
        ...


def scalings(sigma: float, prediction_type: PredictionType) -> tuple[float, float, float]:
    """(c_skip, c_out, c_in) of ``denoised = c_skip · x + c_out · network(c_in · x)``.

    Networks of the variance-preserving kind see ``x / sqrt(1 + sigma²)`` (Karras et al. 2022, table 1). For
    epsilon, ``denoised = x - sigma · epsilon``; for v (Salimans & Ho 2022, arXiv 2202.00512, appendix D),
    ``v = alpha · epsilon - s · x0`` with ``alpha = 1 / sqrt(1 + sigma²)`` and ``s = sigma · alpha`` gives
    ``denoised = x / (1 + sigma²) - v · sigma / sqrt(1 + sigma²)``.

    Rectified flow (Liu et al. 2022, arXiv 2209.03003) mixes ``z = (1 - t) x0 + t · noise`` and predicts
    ``noise - x0``; with ``sigma = t / (1 - t)`` that is ``z = x / (1 + sigma)`` and ``denoised = z - t · flow``.
    """
    if prediction_type == "flow":
        return 1 / (1 + sigma), -sigma / (1 + sigma), 1 / (1 + sigma)
    total = 1 + sigma * sigma
    root = math.sqrt(total)
    if prediction_type == "epsilon":
        return 1.0, -sigma, 1 / root
    return 1 / total, -sigma / root, 1 / root


def flow_timestep(sigma: float) -> float:
    """What a flow network is told of the noise level: 1,000 times its t, ``sigma / (1 + sigma)``."""
    return 1000 * sigma / (1 + sigma)


def continuous_timestep(sigma: float) -> float:
    """What a network trained on continuous noise levels is told: ``log(sigma) / 4`` (Karras et al. 2022, table 1)."""
    return math.log(sigma) / 4


class NetworkDenoiser:
    """A network's guided prediction as a `Denoiser` at any sigma.

    `timestep` says what the network is told of a sigma: `SigmaTable.timestep` for one trained on a table,
    `continuous_timestep` or `flow_timestep` for others. The timesteps of `sigmas` are put on `device` at once, so that
    no step waits for a copy; other sigmas work too.
    """

    def __init__(
        self,
        predict: Predict,
        prediction_type: PredictionType,
        *,
        timestep: Callable[[float], float],
        sigmas: Sequence[float],
        device: torch.device,
    ) -> None:
        self._predict = predict
        self._prediction_type: PredictionType = prediction_type
        self._timestep = timestep
        self._device = device
        noisy = [sigma for sigma in sigmas if sigma > 0]
        timesteps = torch.tensor([[timestep(sigma)] for sigma in noisy], dtype=torch.float32, device=device)
        self._timesteps = dict(zip(noisy, timesteps.unbind(0), strict=True))

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """See `Denoiser`."""
        return self._estimate(x, sigma, self._predicted(x, sigma).guided)

    def both(self, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """See `Denoiser`."""
        prediction = self._predicted(x, sigma)
        return self._estimate(x, sigma, prediction.guided), self._estimate(x, sigma, prediction.negative)

    def _predicted(self, x: Tensor, sigma: float) -> Prediction:
        timestep = self._timesteps.get(sigma)
        if timestep is None:
            # Filled on the device: a copy from the host would wait for everything before it.
            timestep = torch.full((1,), self._timestep(sigma), dtype=torch.float32, device=self._device)
        return self._predict(x * scalings(sigma, self._prediction_type)[2], timestep, sigma)

    def _estimate(self, x: Tensor, sigma: float, prediction: Tensor) -> Tensor:
        c_skip, c_out, _ = scalings(sigma, self._prediction_type)
        return torch.add(x if c_skip == 1.0 else x * c_skip, prediction, alpha=c_out)


class MaskedDenoiser:
    """`denoiser` with the latents `kept` (N, channels, h, w) wherever `mask` (1, 1, h, w; 0…1) is 0.

    As every sampler moves towards the denoised estimate, the part outside the mask ends exactly at `kept`.
    """

    def __init__(self, denoiser: Denoiser, kept: Tensor, mask: Tensor) -> None:
        self._denoiser = denoiser
        self._kept = kept
        self._mask = mask

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """See `Denoiser`."""
        return torch.lerp(self._kept, self._denoiser(x, sigma), self._mask)

    def both(self, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """See `Denoiser`."""
        guided, negative = self._denoiser.both(x, sigma)
        return torch.lerp(self._kept, guided, self._mask), torch.lerp(self._kept, negative, self._mask)
