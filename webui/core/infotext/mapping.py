"""Which pair of an infotext stands for which field of a request: one table, read by the writer and by the reader.

A field is one line here. What is not a plain pair (prompts, sampler and schedule type with their old joined names,
model files, the picture's own seeds) is told in `writing` and `pasting`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from webui.core.fields import get_field
from webui.core.geometry import Size
from webui.core.infotext.grammar import read_decimal, read_size, read_whole, short_number
from webui.core.requests import (
    Choice,
    DiffusionRequest,
    Emphasis,
    InpaintArea,
    MaskedContent,
    NoiseSource,
    ResizeMode,
    StrengthCurve,
    TileBlend,
    Txt2Img,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """How a value is written, how it is read (None: it cannot be), and what a readable one is, for a sentence."""

    write: Callable[[Any], str]
    read: Callable[[str], Any]
    said: str


WHOLE = Kind(write=str, read=read_whole, said="a whole number")
DECIMAL = Kind(write=short_number, read=read_decimal, said="a number")
TEXT = Kind(write=str, read=lambda text: "" if text.startswith("Use same ") else text, said="a name")
SIZE = Kind(write=str, read=read_size, said="a size such as 512x768")


def _named(values: Mapping[str, Any]) -> Kind:
    names = {value: name for name, value in values.items()}
    return Kind(write=lambda value: names[value], read=values.get, said=" or ".join(values))


def _choice(kind: type[Choice]) -> Kind:
    return _named({member.value: member for member in kind})


FLAG = _named({"True": True, "False": False})
# A1111 leaves out a value that is the key again, so its "Tiling" comes alone at times.
TILING = _named({"Tiling": True, "True": True, "False": False})
MASK_MODE = _named({"Inpaint masked": False, "Inpaint not masked": True})


class _Always:
    """Marks a pair that is always written, and that changes nothing where a text lacks it."""


ALWAYS = _Always()


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One pair: its key, the fields of the request that it holds (several for a size) and how.

    `absent` is what a text without the pair stands for, as A1111 reads it; a pair of that value is not written.
    A pair is only written for requests whose switch `when` (a field) is on.
    `samplers` limits the pair to requests with one of these samplers, `besides` to those with any other.
    """

    key: str
    fields: tuple[str, ...]
    kind: Kind
    absent: Any = ALWAYS
    when: str = ""
    samplers: frozenset[str] = frozenset()
    besides: frozenset[str] = frozenset()

    def applies(self, request: DiffusionRequest, sampler: str) -> bool:
        """Whether a request like `request` with `sampler` has this pair at all."""
        if not hasattr(request, self.fields[0].partition(".")[0]):
            return False
        return (not self.samplers or sampler in self.samplers) and sampler not in self.besides


# Samplers for which A1111 keeps another eta, because theirs is 0 by default.
_TIMESTEP_SAMPLERS = frozenset({"DDIM", "DDIM CFG++", "PLMS", "UniPC"})


def _pair(key: str, field: str, kind: Kind, **options: Any) -> Pair:
    return Pair(key=key, fields=(field,), kind=kind, **options)


def _optional(key: str, field: str, kind: Kind, **options: Any) -> Pair:
    """A pair that is left out for the request's own default."""
    return _pair(key, field, kind, absent=get_field(Txt2Img(), field), **options)


# Switches without a pair of their own: what in a text says that they are on.
SWITCHES = {"hires.enabled": "Hires upscaler"}


def _hires(key: str, field: str, kind: Kind, **options: Any) -> Pair:
    return _pair(key, field, kind, when="hires.enabled", **options)


def pairs_of(request: DiffusionRequest, sampler: str) -> Iterator[Pair]:
    """The pairs that a request of this kind with `sampler` may have."""
    return (pair for pair in PAIRS if pair.applies(request, sampler))


def written(request: DiffusionRequest) -> dict[str, str]:
    """Every pair of `request` that its text needs, by key."""
    texts: dict[str, str] = {}
    for pair in pairs_of(request, request.sampler):
        values = [get_field(request, name) for name in pair.fields]
        value = Size(*values) if pair.kind is SIZE else values[0]
        if value != pair.absent and (not pair.when or get_field(request, pair.when)):
            texts[pair.key] = pair.kind.write(value)
    return texts


PAIRS = (
    _pair("Steps", "steps", WHOLE),
    _pair("CFG scale", "cfg_scale", DECIMAL),
    _optional("Image CFG scale", "guidance.image_scale", DECIMAL),
    _pair("Seed", "seed", WHOLE),
    Pair(key="Size", fields=("width", "height"), kind=SIZE),
    _optional("Variation seed", "variation.seed", WHOLE),
    _optional("Variation seed strength", "variation.strength", DECIMAL),
    Pair(
        key="Seed resize from",
        fields=("variation.width", "variation.height"),
        kind=SIZE,
        absent=Size(0, 0),
    ),
    _pair("Denoising strength", "denoising_strength", DECIMAL),
    _optional("Clip skip", "clip_skip", WHOLE),
    _optional("ENSD", "eta_noise_seed_delta", WHOLE),
    # A text without it comes from a program that drew on its graphics card.
    _pair("RNG", "noise_source", _choice(NoiseSource), absent=NoiseSource.GPU),
    _optional("NGMS", "guidance.skip_negative_below", DECIMAL),
    _optional("Emphasis", "emphasis", _choice(Emphasis)),
    _optional("Refiner switch at", "refiner_switch_at", DECIMAL),
    _optional("Eta", "sampler_options.eta", DECIMAL, besides=_TIMESTEP_SAMPLERS),
    _optional("Eta DDIM", "sampler_options.eta", DECIMAL, samplers=_TIMESTEP_SAMPLERS),
    _optional("Sigma churn", "sampler_options.s_churn", DECIMAL),
    _optional("Sigma tmin", "sampler_options.s_tmin", DECIMAL),
    _optional("Sigma tmax", "sampler_options.s_tmax", DECIMAL),
    _optional("Sigma noise", "sampler_options.s_noise", DECIMAL),
    _optional("UniPC order", "sampler_options.order", WHOLE),
    _optional("Schedule min sigma", "schedule_options.sigma_min", DECIMAL),
    _optional("Schedule max sigma", "schedule_options.sigma_max", DECIMAL),
    _optional("Schedule rho", "schedule_options.rho", DECIMAL),
    _optional("Beta scheduler alpha", "schedule_options.alpha", DECIMAL),
    _optional("Beta scheduler beta", "schedule_options.beta", DECIMAL),
    _optional("Discard penultimate sigma", "schedule_options.discard_next_to_last", FLAG),
    _optional("SGM noise multiplier", "schedule_options.sgm_noise_multiplier", FLAG),
    _optional("CFG rescale", "guidance.rescale", DECIMAL),
    _optional("Skip Early CFG", "guidance.skip_early", DECIMAL),
    # Names that A1111, Forge's FreeU, PAG and SAG, and the extension sd-dynamic-thresholding write.
    _optional("Tiling", "extras.tiling", TILING),
    _optional("freeu_b1", "extras.freeu_b1", DECIMAL),
    _optional("freeu_b2", "extras.freeu_b2", DECIMAL),
    _optional("freeu_s1", "extras.freeu_s1", DECIMAL),
    _optional("freeu_s2", "extras.freeu_s2", DECIMAL),
    _optional("Epsilon scaling", "extras.epsilon_scaling", DECIMAL),
    _optional("Mimic scale", "extras.mimic_scale", DECIMAL),
    _optional("Threshold percentile", "extras.threshold_percentile", DECIMAL),
    _optional("Token merging ratio", "extras.token_merging", DECIMAL),
    _optional("pag_scale", "extras.pag_scale", DECIMAL),
    _optional("sag_scale", "extras.sag_scale", DECIMAL),
    _optional("Tiled diffusion", "tiled.method", _choice(TileBlend)),
    _optional("Tiled diffusion tile", "tiled.tile", WHOLE),
    _optional("Tiled diffusion overlap", "tiled.overlap", WHOLE),
    _hires("Denoising strength", "hires.denoising_strength", DECIMAL),
    _hires("Hires upscale", "hires.scale", DECIMAL),
    Pair(
        key="Hires resize", fields=("hires.width", "hires.height"), kind=SIZE, absent=Size(0, 0), when="hires.enabled"
    ),
    _hires("Hires upscaler", "hires.upscaler", TEXT),
    _hires("Hires steps", "hires.steps", WHOLE, absent=0),
    _hires("Hires sampler", "hires.sampler", TEXT, absent=""),
    _hires("Hires schedule type", "hires.schedule_type", TEXT, absent=""),
    _hires("Hires CFG Scale", "hires.cfg_scale", DECIMAL, absent=0.0),
    _hires("Hires prompt", "hires.prompt", TEXT, absent=""),
    _hires("Hires negative prompt", "hires.negative_prompt", TEXT, absent=""),
    _hires("Token merging ratio hr", "hires.token_merging", DECIMAL, absent=None),
    _pair("Resize mode", "resize_mode", _choice(ResizeMode)),
    _pair("Exact steps", "start.exact_steps", FLAG, absent=False),
    _pair("Extra noise", "start.extra_noise", DECIMAL, absent=0.0),
    _pair("Color correction", "start.colour_correction", FLAG, absent=False),
    _pair("Background color", "start.background", TEXT, absent="#ffffff"),
    _pair("Loops", "loopback.loops", WHOLE, absent=1),
    _pair("Final denoising strength", "loopback.final_strength", DECIMAL, absent=0.5),
    _pair("Denoising curve", "loopback.curve", _choice(StrengthCurve), absent=StrengthCurve.LINEAR),
    _pair("SD upscale upscaler", "sd_upscale.upscaler", TEXT, absent=""),
    _pair("SD upscale scale", "sd_upscale.scale", DECIMAL, absent=2.0),
    _pair("SD upscale overlap", "sd_upscale.overlap", WHOLE, absent=64),
    _pair("Mask blur", "mask_blur", WHOLE),
    _pair("Mask blur y", "mask_blur_y", WHOLE, absent=None),
    _pair("Mask mode", "mask_inverted", MASK_MODE),
    _pair("Inpaint area", "area", _choice(InpaintArea)),
    _pair("Masked area padding", "padding", WHOLE),
    _pair("Masked content", "masked_content", _choice(MaskedContent)),
    _pair("Conditional mask weight", "conditional_mask_weight", DECIMAL, absent=1.0),
    _pair("Soft inpainting enabled", "soft.enabled", FLAG, absent=False),
    _pair("Soft inpainting schedule bias", "soft.schedule_bias", DECIMAL, absent=1.0),
    _pair("Soft inpainting preservation strength", "soft.preservation_strength", DECIMAL, absent=0.5),
    _pair("Soft inpainting transition contrast boost", "soft.transition_contrast", DECIMAL, absent=4.0),
    _pair("Soft inpainting mask influence", "soft.mask_influence", DECIMAL, absent=0.0),
    _pair("Soft inpainting difference threshold", "soft.difference_threshold", DECIMAL, absent=0.5),
    _pair("Soft inpainting difference contrast", "soft.difference_contrast", DECIMAL, absent=2.0),
    *(_pair(f"Outpaint {side}", f"outpaint.{side}", WHOLE, absent=0) for side in ("left", "top", "right", "bottom")),
)
