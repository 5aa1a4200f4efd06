"""Forming pictures of diffusers' pipelines: from what a step's callback gives to latents that previews can show.

A pipeline tells its noisy latents after each step. Where the steps are Euler's along a flow, two of them tell the
direction of the flow, and so where it ends: the picture as the network sees it now. Others are shown as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

from webui.engine.previews import Render, preview_of

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

# Pipelines that take four latent pixels as one: their latents are (N, pixels / 4, 4 · channels).
_PACKED = ("ChromaPipeline", "FluxPipeline", "OvisImagePipeline")
_EULER = "FlowMatchEulerDiscreteScheduler"


class Forming:
    """The pictures of one call of `pipeline`, `width` × `height` pixels each. Called by the pipeline's thread only."""

    def __init__(self, pipeline: DiffusionPipeline, render: Render | None, *, width: int, height: int) -> None:
        self._pipeline = pipeline
        self._render = render
        self._size = (width, height)
        self._before: Tensor | None = None
        self._sigmas: list[float] | None = None

    def sigma(self, index: int) -> float:
        """The noise level that step `index` begins at, 0 where the scheduler knows none.

        They lie on the card, and are brought from there once a call: the host waits for its work whenever it asks.
        """
        if self._sigmas is None:
            sigmas = getattr(self._pipeline.components["scheduler"], "sigmas", None)
            self._sigmas = [] if sigmas is None else [float(sigma) for sigma in sigmas.tolist()]
        return self._sigmas[index] if index < len(self._sigmas) else 0.0

    def preview(self, index: int, latents: object) -> Callable[[], bytes] | None:
        """How the picture looks after the step `index` (from 0) that made `latents`; None where that cannot be told."""
        if self._render is None or not isinstance(latents, Tensor):
            return None
        before, self._before = self._before, latents
        ended = self._ended(index, before, latents)
        shown = None if ended is None else self._unpacked(ended)
        return None if shown is None else preview_of(shown, self._render)

    def _ended(self, index: int, before: Tensor | None, latents: Tensor) -> Tensor | None:
        """Where the flow ends: x - σ · dx/dσ, by the last step's dx and dσ (Liu et al. 2022, arXiv 2209.03003)."""
        scheduler = self._pipeline.components["scheduler"]
        if type(scheduler).__name__ != _EULER or scheduler.config["stochastic_sampling"]:
            return latents
        sigma = self.sigma(index + 1)
        step = sigma - self.sigma(index)
        if sigma == 0 or step == 0:
            return latents
        return None if before is None else latents - (latents - before) * (sigma / step)

    def _unpacked(self, latents: Tensor) -> Tensor | None:
        """(N, C, h, w); None for latents of another kind."""
        if type(self._pipeline).__name__ in _PACKED and latents.ndim == 3:
            width, height = self._size
            factor = self._pipeline.vae_scale_factor
            return self._pipeline._unpack_latents(latents, height, width, factor)
        return latents if latents.ndim == 4 else None
