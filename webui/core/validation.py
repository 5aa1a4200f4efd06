"""Checks a request before it becomes a job, and settles its seed.

What can be known without a model is checked here, in one place for every edge; whether a checkpoint or an upscaler
exists is asked of the catalogue of models.
"""

from __future__ import annotations

import dataclasses
import random
import re

from webui.core import catalogue
from webui.core.errors import InvalidRequest
from webui.core.hires import enlargement
from webui.core.requests import (
    DiffusionRequest,
    Extras,
    Img2Img,
    Inpaint,
    Request,
    SoftInpainting,
    StartOptions,
    TileBlend,
    Txt2Img,
    Upscale,
)


def _in_range(what: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise InvalidRequest(f"{what} is {value:g}, outside {low:g} to {high:g}; choose a value in that range.")


def _one_of(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InvalidRequest(f"{what} {value!r} is not known; choose one of {', '.join(known)}.")


def validate(request: Request) -> None:
    """Raises `InvalidRequest` naming the first field that is out of range, its value and what is allowed."""
    if isinstance(request, Upscale):
        _validate_upscale(request)
        return
    _one_of("Sampler", request.sampler, catalogue.SAMPLERS)
    _one_of("Schedule type", request.schedule_type, catalogue.SCHEDULE_TYPES)
    _in_range("Steps", request.steps, *catalogue.STEPS_RANGE)
    for what, value in (("Width", request.width), ("Height", request.height)):
        _dimension(what, value)
    _in_range("CFG scale", request.cfg_scale, *catalogue.CFG_SCALE_RANGE)
    _in_range("Batch size", request.batch_size, *catalogue.BATCH_SIZE_RANGE)
    _in_range("Batch count", request.batch_count, *catalogue.BATCH_COUNT_RANGE)
    _in_range("Seed", request.seed, -1, catalogue.MAX_SEED)
    _in_range("Clip skip", request.clip_skip, *catalogue.CLIP_SKIP_RANGE)
    _in_range("Refiner switch at", request.refiner_switch_at, *catalogue.REFINER_SWITCH_RANGE)
    _validate_noise(request)
    _validate_sampling(request)
    _validate_extras(request.extras)
    _validate_tiles(request)
    if isinstance(request, Txt2Img):
        _validate_hires(request)
        return
    _in_range("Denoising strength", request.denoising_strength, 0, 1)
    _not_empty("picture to start from", request.init_image)
    _validate_start(request.start)
    if isinstance(request, Img2Img):
        _validate_loops(request)
    else:
        _validate_inpaint(request)


def _dimension(what: str, value: int) -> None:
    _in_range(what, value, *catalogue.DIMENSION_RANGE)
    step = catalogue.DIMENSION_STEP
    if value % step:
        raise InvalidRequest(
            f"{what} is {value}, not a multiple of {step}; the nearest are {value // step * step}"
            f" and {(value // step + 1) * step}."
        )


def _validate_upscale(request: Upscale) -> None:
    _in_range("Scale", request.scale, *catalogue.SCALE_RANGE)
    if request.width or request.height:
        _in_range("Target width", request.width, 1, catalogue.DIMENSION_RANGE[1])
        _in_range("Target height", request.height, 1, catalogue.DIMENSION_RANGE[1])
    _in_range("Upscaler 2 visibility", request.upscaler_2_visibility, 0, 1)
    if request.tile != 0:
        _in_range("Tile size", request.tile, 32, 2048)
        _in_range("Tile overlap", request.overlap, 0, request.tile // 2)
    _in_range("Face restoration visibility", request.faces.visibility, 0, 1)
    _in_range("CodeFormer weight", request.faces.weight, 0, 1)
    diffusion = request.diffusion
    _in_range("Upscaler steps", diffusion.steps, *catalogue.STEPS_RANGE)
    _in_range("Upscaler CFG scale", diffusion.cfg_scale, *catalogue.CFG_SCALE_RANGE)
    _in_range("Upscaler noise level", diffusion.noise_level, *catalogue.NOISE_LEVEL_RANGE)
    _in_range("Upscaler seed", diffusion.seed, 0, catalogue.MAX_SEED)
    _not_empty("picture to upscale", request.image)


def _validate_tiles(request: DiffusionRequest) -> None:
    tiled = request.tiled
    if tiled.method is TileBlend.NONE:
        return
    _in_range("Tile size", tiled.tile, *catalogue.TILE_RANGE)
    _in_range("Tile overlap", tiled.overlap, catalogue.TILE_OVERLAP_RANGE[0], tiled.tile // 2)
    for what, asked in (("Self-attention guidance", request.extras.sag_scale > 0), ("Tiling", request.extras.tiling)):
        if asked:
            raise InvalidRequest(
                f"{what} needs the whole picture at once, and {tiled.method} denoises it in tiles;"
                " turn one of them off."
            )


def _validate_hires(request: Txt2Img) -> None:
    hires = request.hires
    if not hires.enabled:
        return
    _in_range("Hires scale", hires.scale, *catalogue.HIRES_SCALE_RANGE)
    for what, value in (("Hires width", hires.width), ("Hires height", hires.height)):
        if value:
            _dimension(what, value)
    size = enlargement(request).cover
    for what, value in (("width", size.width), ("height", size.height)):
        _in_range(f"The {what} after hires fix", value, *catalogue.DIMENSION_RANGE)
    _in_range("Hires steps", hires.steps, *catalogue.HIRES_STEPS_RANGE)
    _in_range("Hires denoising strength", hires.denoising_strength, 0, 1)
    if hires.sampler:
        _one_of("Hires sampler", hires.sampler, catalogue.SAMPLERS)
    if hires.schedule_type:
        _one_of("Hires schedule type", hires.schedule_type, catalogue.SCHEDULE_TYPES)
    if hires.cfg_scale:
        _in_range("Hires CFG scale", hires.cfg_scale, *catalogue.CFG_SCALE_RANGE)
    if hires.token_merging is not None:
        _in_range("Hires token merging ratio", hires.token_merging, *catalogue.TOKEN_MERGING_RANGE)


def _validate_start(start: StartOptions) -> None:
    _in_range("Extra noise", start.extra_noise, *catalogue.EXTRA_NOISE_RANGE)
    if not re.fullmatch("#[0-9a-fA-F]{6}", start.background):
        raise InvalidRequest(f"The background colour is {start.background!r}; give it as #rrggbb, such as #ffffff.")


def _validate_loops(request: Img2Img) -> None:
    _in_range("Loops", request.loopback.loops, *catalogue.LOOPS_RANGE)
    _in_range("Final denoising strength", request.loopback.final_strength, 0, 1)
    if request.sd_upscale.upscaler:
        if request.loopback.loops > 1:
            raise InvalidRequest(
                f"Loopback ({request.loopback.loops} loops) and SD upscale do not go together; turn one of them off."
            )
        _in_range("SD upscale's scale", request.sd_upscale.scale, *catalogue.SCALE_RANGE)
        _in_range("SD upscale's overlap", request.sd_upscale.overlap, *catalogue.SD_UPSCALE_OVERLAP_RANGE)


def _validate_inpaint(request: Inpaint) -> None:
    _in_range("Mask blur", request.mask_blur, *catalogue.MASK_BLUR_RANGE)
    if request.mask_blur_y is not None:
        _in_range("Mask blur y", request.mask_blur_y, *catalogue.MASK_BLUR_RANGE)
    _in_range("Padding", request.padding, *catalogue.PADDING_RANGE)
    _in_range("Conditional mask weight", request.conditional_mask_weight, 0, 1)
    _validate_soft(request.soft)
    for side in ("left", "top", "right", "bottom"):
        _in_range(f"Outpaint {side}", getattr(request.outpaint, side), *catalogue.OUTPAINT_RANGE)
    if not request.outpaint.grows:
        _not_empty("mask", request.mask)


def _validate_soft(soft: SoftInpainting) -> None:
    _in_range("Schedule bias", soft.schedule_bias, *catalogue.SCHEDULE_BIAS_RANGE)
    _in_range("Preservation strength", soft.preservation_strength, *catalogue.PRESERVATION_STRENGTH_RANGE)
    _in_range("Transition contrast boost", soft.transition_contrast, *catalogue.TRANSITION_CONTRAST_RANGE)
    _in_range("Mask influence", soft.mask_influence, *catalogue.MASK_INFLUENCE_RANGE)
    _in_range("Difference threshold", soft.difference_threshold, *catalogue.DIFFERENCE_THRESHOLD_RANGE)
    _in_range("Difference contrast", soft.difference_contrast, *catalogue.DIFFERENCE_CONTRAST_RANGE)


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
