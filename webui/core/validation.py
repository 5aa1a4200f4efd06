"""Checks a request before it becomes a job, and settles its seed.

What can be known without a model is checked here, in one place for every edge; whether a checkpoint or an upscaler
exists is asked of the catalogue of models.
"""

from __future__ import annotations

import dataclasses
import random

from webui.core import catalogue
from webui.core.errors import InvalidRequest
from webui.core.requests import DiffusionRequest, Extras, Img2Img, Inpaint, Request, Upscale


def _in_range(what: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise InvalidRequest(f"{what} is {value:g}, outside {low:g} to {high:g}; choose a value in that range.")


def _one_of(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InvalidRequest(f"{what} {value!r} is not known; choose one of {', '.join(known)}.")


def validate(request: Request) -> None:
    """Raises `InvalidRequest` naming the first field that is out of range, its value and what is allowed."""
    if isinstance(request, Upscale):
        _in_range("Scale", request.scale, *catalogue.SCALE_RANGE)
        if request.tile != 0:
            _in_range("Tile size", request.tile, 32, 2048)
            _in_range("Tile overlap", request.overlap, 0, request.tile // 2)
        _not_empty("picture to upscale", request.image)
        return
    _one_of("Sampler", request.sampler, catalogue.SAMPLERS)
    _one_of("Schedule type", request.schedule_type, catalogue.SCHEDULE_TYPES)
    _in_range("Steps", request.steps, *catalogue.STEPS_RANGE)
    for what, value in (("Width", request.width), ("Height", request.height)):
        _in_range(what, value, *catalogue.DIMENSION_RANGE)
        if value % catalogue.DIMENSION_STEP:
            step = catalogue.DIMENSION_STEP
            raise InvalidRequest(
                f"{what} is {value}, not a multiple of {step}; the nearest are {value // step * step}"
                f" and {(value // step + 1) * step}."
            )
    _in_range("CFG scale", request.cfg_scale, *catalogue.CFG_SCALE_RANGE)
    _in_range("Batch size", request.batch_size, *catalogue.BATCH_SIZE_RANGE)
    _in_range("Batch count", request.batch_count, *catalogue.BATCH_COUNT_RANGE)
    _in_range("Seed", request.seed, -1, catalogue.MAX_SEED)
    _in_range("Clip skip", request.clip_skip, *catalogue.CLIP_SKIP_RANGE)
    _in_range("Refiner switch at", request.refiner_switch_at, *catalogue.REFINER_SWITCH_RANGE)
    _validate_noise(request)
    _validate_sampling(request)
    _validate_extras(request.extras)
    if isinstance(request, Img2Img | Inpaint):
        _in_range("Denoising strength", request.denoising_strength, 0, 1)
        _not_empty("picture to start from", request.init_image)
    if isinstance(request, Inpaint):
        _in_range("Mask blur", request.mask_blur, *catalogue.MASK_BLUR_RANGE)
        _in_range("Padding", request.padding, *catalogue.PADDING_RANGE)
        _not_empty("mask", request.mask)


def _validate_noise(request: DiffusionRequest) -> None:
    _in_range("ENSD", request.eta_noise_seed_delta, -catalogue.MAX_SEED, catalogue.MAX_SEED)
    variation = request.variation
    _in_range("Variation seed", variation.seed, -1, catalogue.MAX_SEED)
    _in_range("Variation strength", variation.strength, 0, 1)
    for what, value in (("width", variation.width), ("height", variation.height)):
        _in_range(f"Resize seed from {what}", value, 0, catalogue.DIMENSION_RANGE[1])


def _validate_sampling(request: DiffusionRequest) -> None:
    sampler, schedule, guidance = request.sampler_options, request.schedule_options, request.guidance
    if sampler.eta is not None:
        _in_range("Eta", sampler.eta, *catalogue.ETA_RANGE)
    _in_range("Sigma churn", sampler.s_churn, *catalogue.S_CHURN_RANGE)
    _in_range("Sigma tmin", sampler.s_tmin, *catalogue.S_TMIN_RANGE)
    _in_range("Sigma tmax", sampler.s_tmax, *catalogue.S_TMAX_RANGE)
    _in_range("Sigma noise", sampler.s_noise, *catalogue.S_NOISE_RANGE)
    _in_range("UniPC order", sampler.order, *catalogue.UNIPC_ORDER_RANGE)
    for what, sigma in (("Schedule min sigma", schedule.sigma_min), ("Schedule max sigma", schedule.sigma_max)):
        if sigma is not None:
            _in_range(what, sigma, *catalogue.SIGMA_RANGE)
    _in_range("Schedule rho", schedule.rho, *catalogue.RHO_RANGE)
    _in_range("Beta schedule alpha", schedule.alpha, *catalogue.BETA_RANGE)
    _in_range("Beta schedule beta", schedule.beta, *catalogue.BETA_RANGE)
    _in_range("CFG rescale", guidance.rescale, *catalogue.CFG_RESCALE_RANGE)
    _in_range("Skip early CFG", guidance.skip_early, *catalogue.SKIP_EARLY_RANGE)
    _in_range("NGMS", guidance.skip_negative_below, *catalogue.SKIP_NEGATIVE_BELOW_RANGE)
    _in_range("Image CFG scale", guidance.image_scale, *catalogue.IMAGE_CFG_SCALE_RANGE)


def _validate_extras(extras: Extras) -> None:
    for what, factor in (("FreeU b1", extras.freeu_b1), ("FreeU b2", extras.freeu_b2)):
        _in_range(what, factor, *catalogue.FREEU_BACKBONE_RANGE)
    for what, factor in (("FreeU s1", extras.freeu_s1), ("FreeU s2", extras.freeu_s2)):
        _in_range(what, factor, *catalogue.FREEU_SKIP_RANGE)
    _in_range("Epsilon scaling", extras.epsilon_scaling, *catalogue.EPSILON_SCALING_RANGE)
    _in_range("Mimic scale", extras.mimic_scale, *catalogue.MIMIC_SCALE_RANGE)
    _in_range("Threshold percentile", extras.threshold_percentile, *catalogue.THRESHOLD_PERCENTILE_RANGE)
    _in_range("Token merging ratio", extras.token_merging, *catalogue.TOKEN_MERGING_RANGE)
    _in_range("PAG scale", extras.pag_scale, *catalogue.PAG_SCALE_RANGE)
    _in_range("SAG scale", extras.sag_scale, *catalogue.SAG_SCALE_RANGE)


def _not_empty(what: str, png: bytes) -> None:
    if not png:
        raise InvalidRequest(f"There is no {what}; add one and try again.")


def with_seed(request: Request) -> Request:
    """The same request with seeds of -1 replaced by random ones, so that running it again gives the same pictures.

    The variation's seed is only settled where it does something.
    """
    if isinstance(request, Upscale):
        return request
    changes: dict[str, object] = {}
    if request.seed == -1:
        changes["seed"] = _random_seed()
    if request.variation.seed == -1 and request.variation.strength > 0:
        changes["variation"] = dataclasses.replace(request.variation, seed=_random_seed())
    return dataclasses.replace(request, **changes) if changes else request


def _random_seed() -> int:
    return random.SystemRandom().randint(0, catalogue.MAX_SEED)
