"""Epsilon scaling: the predicted noise made a little smaller, against the drift between training and sampling.

Ning et al. 2023, "Elucidating the Exposure Bias in Diffusion Models" (arXiv 2308.15321).
"""

from __future__ import annotations

import torch
from torch import Tensor

from webui.engine.denoiser import Denoiser


class EpsilonScaledDenoiser:
    """`denoiser` with its noise divided by `factor`: ``x - (x - denoised) / factor``, the paper's uniform schedule."""

    def __init__(self, denoiser: Denoiser, factor: float) -> None:
        self._denoiser = denoiser
        self._share = 1 / factor

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """See `Denoiser`."""
        return torch.lerp(x, self._denoiser(x, sigma), self._share)

    def both(self, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """See `Denoiser`."""
        guided, negative = self._denoiser.both(x, sigma)
        return torch.lerp(x, guided, self._share), torch.lerp(x, negative, self._share)
