"""What may be added to a run beyond its sampler and prompts: one file an extra, each off unless the request asks.

An extra either patches the loaded network for as long as a `with` block, and leaves it as it was, or wraps a denoiser.
Perturbed attention and self-attention guidance ask the network once more, so `webui.engine.guidance` uses them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from webui.core.requests import Extras
from webui.engine.denoiser import Denoiser
from webui.engine.extras.dynamic_thresholding import ThresholdedDenoiser
from webui.engine.extras.epsilon_scaling import EpsilonScaledDenoiser
from webui.engine.extras.freeu import freeu
from webui.engine.extras.tiling import tiled
from webui.engine.extras.token_merging import merging

__all__ = ["adjusted", "patched_unet", "patched_vae"]


@contextlib.contextmanager
def patched_unet(unet: Any, extras: Extras) -> Iterator[None]:
    """Within the block, `unet` (a diffusers UNet2DConditionModel) works as `extras` asks."""
    with contextlib.ExitStack() as stack:
        if extras.tiling:
            stack.enter_context(tiled(unet))
        if (extras.freeu_b1, extras.freeu_b2, extras.freeu_s1, extras.freeu_s2) != (1, 1, 1, 1):
            stack.enter_context(freeu(unet, extras))
        if extras.token_merging > 0:
            stack.enter_context(merging(unet, extras.token_merging))
        yield


@contextlib.contextmanager
def patched_vae(vae: Any, extras: Extras) -> Iterator[None]:
    """Within the block, `vae` (a diffusers AutoencoderKL) works as `extras` asks."""
    with tiled(vae) if extras.tiling else contextlib.nullcontext():
        yield


def adjusted(denoiser: Denoiser, extras: Extras, cfg_scale: float) -> Denoiser:
    """`denoiser`, which is guided at `cfg_scale`, with what `extras` makes of its estimates."""
    if extras.mimic_scale > 0:
        denoiser = ThresholdedDenoiser(
            denoiser, cfg_scale=cfg_scale, mimic_scale=extras.mimic_scale, percentile=extras.threshold_percentile
        )
    if extras.epsilon_scaling != 1:
        denoiser = EpsilonScaledDenoiser(denoiser, extras.epsilon_scaling)
    return denoiser
