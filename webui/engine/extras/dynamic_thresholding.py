"""Dynamic thresholding for latents: what a high CFG scale blows up is brought back to a lower scale's range.

The idea is Imagen's (Saharia et al. 2022, arXiv 2205.11487, section 2.3), whose threshold is the pixels' own -1…1.
Latents have no such bound, so the bound is taken from the same step at a lower, "mimicked" CFG scale: the method of the
extension sd-dynamic-thresholding, in its constant mode.
"""

from __future__ import annotations

import torch
from torch import Tensor

from webui.engine.denoiser import Denoiser


def thresholded(guided: Tensor, mimicked: Tensor, percentile: float) -> Tensor:
    """`guided` (N, channels, h, w) in the range of `mimicked`, by picture and channel, around its own mean.

    What lies beyond the `percentile` (0…100) of its distances from the mean is cut off, unless `mimicked` reaches
    further.
    """
    middle = guided.mean((2, 3), keepdim=True)
    apart = guided - middle
    wanted = (mimicked - mimicked.mean((2, 3), keepdim=True)).abs().amax((2, 3), keepdim=True)
    reach = apart.abs().flatten(2).quantile(percentile / 100, dim=2)[..., None, None]
    bound = torch.maximum(reach, wanted).clamp_min(torch.finfo(guided.dtype).tiny)
    return apart.clamp(-bound, bound) / bound * wanted + middle


class ThresholdedDenoiser:
    """`denoiser`, guided at `cfg_scale`, with the range that guidance at `mimic_scale` would have."""

    def __init__(self, denoiser: Denoiser, *, cfg_scale: float, mimic_scale: float, percentile: float) -> None:
        self._denoiser = denoiser
        self._share = mimic_scale / cfg_scale
        self._percentile = percentile

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """See `Denoiser`."""
        return self.both(x, sigma)[0]

    def both(self, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """See `Denoiser`."""
        guided, negative = self._denoiser.both(x, sigma)
        mimicked = torch.lerp(negative, guided, self._share)
        return thresholded(guided, mimicked, self._percentile), negative
