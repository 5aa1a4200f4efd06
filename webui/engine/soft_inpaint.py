"""Soft inpainting: a mask of greys, where each place changes as much as it may.

The feature is A1111's (pull request 14208, by CodeHatchling), of the family of "Differential Diffusion" (Levin & Fried
2023, arXiv 2306.00950): grey places keep the original while there is much noise and are let go as it falls, so that
what is new grows out of what stays. In the end the finished pixels are blended by how much each place really changed.
This module is the arithmetic on latents; cutting, pasting and the promise about untouched pixels are `inpaint`'s.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from webui.core.requests import SoftInpainting
from webui.engine.denoiser import Denoiser

_TINY = 1e-6


class SoftlyMaskedDenoiser:
    """`denoiser`, whose estimate is blended into the latents `kept` (N, channels, h, w) as far as `mask` lets it.

    `mask` (1, 1, h, w) is 0…1, 1 where everything is new; where it is 0 nothing changes at any noise level.
    """

    def __init__(self, denoiser: Denoiser, kept: Tensor, mask: Tensor, options: SoftInpainting) -> None:
        self._denoiser = denoiser
        self._kept = kept
        self._mask = mask
        self._options = options

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """See `Denoiser`."""
        return self._blend(self._denoiser(x, sigma), sigma)

    def both(self, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """See `Denoiser`."""
        guided, negative = self._denoiser.both(x, sigma)
        return self._blend(guided, sigma), self._blend(negative, sigma)

    def _blend(self, estimate: Tensor, sigma: float) -> Tensor:
        share = new_share(self._mask, sigma, self._options)
        return blended(self._kept, estimate, share, self._options.transition_contrast)


def new_share(mask: Tensor, sigma: float, options: SoftInpainting) -> Tensor:
    """How much of the new picture each place of `mask` takes under noise of `sigma`, 0…1, of the mask's shape.

    ``mask ** (preservation_strength · sigma ** schedule_bias)``: next to nothing of a grey place while sigma is large,
    everything as it goes to 0. A place that is not masked at all takes nothing, whatever the exponent.
    """
    exponent = options.preservation_strength * sigma**options.schedule_bias
    return torch.where(mask > 0, mask.pow(exponent), 0)


def blended(kept: Tensor, new: Tensor, share: Tensor, contrast: float) -> Tensor:
    """`share` (1, 1, h, w) of `new` in `kept`, both (N, channels, h, w), as strong as the two are.

    The plain mean of two latents that differ is shorter than either, which shows as a pale blur. So the blend keeps
    the mean's direction and gets as length the power mean of exponent `contrast` of the two lengths.
    """
    mean = torch.lerp(kept, new, share)
    lengths = torch.cat([kept.norm(dim=1, keepdim=True).expand_as(mean[:, :1]), new.norm(dim=1, keepdim=True)], dim=1)
    # Relative to the longer one: high powers of the lengths themselves would overflow.
    longest = lengths.amax(dim=1, keepdim=True).clamp(min=_TINY)
    powers = (lengths / longest).pow(contrast)
    length = longest * torch.lerp(powers[:, :1], powers[:, 1:], share).pow(1 / contrast)
    return mean * (length / mean.norm(dim=1, keepdim=True).clamp(min=_TINY))


def changed_share(mask: Tensor, before: Tensor, after: Tensor, options: SoftInpainting) -> Tensor:
    """How much of the new pixels each place of the finished picture takes, (1, 1, h, w), 0…1.

    `before` and `after` (1, channels, h, w) are latents, `mask` (1, 1, h, w) as in `SoftlyMaskedDenoiser`. A place
    counts as changed as far as the latents there, or next to it, moved beyond `difference_threshold`, the more sharply
    the higher `difference_contrast`. With `mask_influence` the threshold is higher where the mask is dark, lower where
    it is light.
    """
    moved = F.max_pool2d((after - before).norm(dim=1, keepdim=True), 3, stride=1, padding=1)
    dark = 1 - new_share(mask, 1.0, options).sqrt()
    weight = torch.lerp(torch.full_like(dark, 0.5), dark, options.mask_influence)
    threshold = options.difference_threshold * weight / (1 + _TINY - weight)
    kept = 1 / (1 + (moved / threshold.clamp(min=_TINY)).pow(options.difference_contrast))
    # Smootherstep (Perlin 2002, "Improving Noise"): no edges where it begins and ends.
    return 1 - kept**3 * (kept * (kept * 6 - 15) + 10)
