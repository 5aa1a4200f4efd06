"""The fields of the section "More": what they are called, how they are shown and read. Pure; `components.more` shows.

Names are those of the request's fields, dotted inside a group; what a form leaves out has the request's own default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from webui.core import catalogue
from webui.core.errors import InvalidRequest
from webui.core.fields import get_field, whole_fields
from webui.core.infotext.grammar import read_decimal, short_number
from webui.core.requests import (
    Choice,
    DiffusionRequest,
    Emphasis,
    Img2Img,
    Inpaint,
    NoiseSource,
    StrengthCurve,
    TileBlend,
    Txt2Img,
)
from webui.ui.kinds import number, text, whole

BASES: Mapping[str, DiffusionRequest] = {
    "txt2img": Txt2Img(),
    "img2img": Img2Img(init_image=b""),
    "inpaint": Inpaint(init_image=b"", mask=b""),
}
"""By tab, a request with every default."""


class Control(Enum):
    """How a field is shown, and so what may come from it."""

    SLIDER = "slider"
    NUMBER = "number"
    WHOLE = "whole number"
    OPTIONAL = "number or nothing"
    OPTIONAL_WHOLE = "whole number or nothing"
    TEXT = "text"
    MENU = "menu"
    CHECK = "check"


@dataclass(frozen=True, slots=True, kw_only=True)
class MoreField:
    """One field; `element` is the end of its element id, `limits` and `step` are for sliders, `choices` for menus.

    `placeholder` stands in an empty field. Menus of models get their choices from the page. `tab` is the first one
    that has the field.
    """

    name: str
    label: str
    control: Control
    element: str
    limits: tuple[float, float] = (0.0, 1.0)
    step: float = 0.01
    choices: tuple[str, ...] = ()
    placeholder: str = ""
    tab: str = "txt2img"

    @property
    def default(self) -> Any:
        """The value that a fresh form shows."""
        return self.shown(get_field(BASES[self.tab], self.name))

    def shown(self, value: Any) -> Any:
        """A request's `value` as the field shows it: gradio's number field knows no emptiness, so text stands in."""
        if self.control in (Control.OPTIONAL, Control.OPTIONAL_WHOLE):
            # A pasted text may leave what a form holds, which is text already.
            return (value or "") if value is None or isinstance(value, str) else short_number(value)
        return value.value if isinstance(value, Choice) else value

    def read(self, value: object) -> Any:
        """`value` from a form as the request's; raises `InvalidRequest` naming the field."""
        if self.control in (Control.OPTIONAL, Control.OPTIONAL_WHOLE):
            return self._read_optional(text(value).strip())
        if self.control is Control.TEXT:
            return text(value).strip()
        if self.control is Control.WHOLE or (self.control is Control.SLIDER and self.step == 1):
            return whole(self.label, value)
        if self.control is Control.CHECK:
            return value is True
        if self.control is not Control.MENU:
            return number(self.label, value)
        kind = type(get_field(BASES[self.tab], self.name))
        if not issubclass(kind, Choice):
            return text(value)
        try:
            return kind(value)
        except ValueError:
            known = ", ".join(member.value for member in kind)
            raise InvalidRequest(f"{self.label} is {value!r}; choose one of {known}.") from None

    def _read_optional(self, written: str) -> float | None:
        if not written:
            return None
        found = read_decimal(written)
        if found is None:
            raise InvalidRequest(
                f"{self.label} is {written[:40]!r}, which is not a number; correct it or leave it empty."
            )
        return (whole if self.control is Control.OPTIONAL_WHOLE else number)(self.label, found)


def _slider(name: str, label: str, element: str, **options: Any) -> MoreField:
    return MoreField(name=name, label=label, control=Control.SLIDER, element=element, **options)


def _number(name: str, label: str, element: str, **options: Any) -> MoreField:
    return MoreField(name=name, label=label, control=Control.NUMBER, element=element, **options)


def _whole(name: str, label: str, element: str, **options: Any) -> MoreField:
    return MoreField(name=name, label=label, control=Control.WHOLE, element=element, **options)


def _optional(name: str, label: str, element: str, placeholder: str) -> MoreField:
    return MoreField(name=name, label=label, control=Control.OPTIONAL, element=element, placeholder=placeholder)


def _menu(name: str, label: str, element: str, choices: tuple[str, ...] = (), **options: Any) -> MoreField:
    return MoreField(name=name, label=label, control=Control.MENU, element=element, choices=choices, **options)


def _check(name: str, label: str, element: str, **options: Any) -> MoreField:
    return MoreField(name=name, label=label, control=Control.CHECK, element=element, **options)


def _beginning(tab: str) -> tuple[tuple[MoreField, ...], ...]:
    return (
        (
            _slider("start.extra_noise", "Extra noise", "img2img_extra_noise", tab=tab),
            MoreField(
                name="start.background",
                label="Behind transparent pictures",
                control=Control.TEXT,
                element="img2img_background_color",
                placeholder="#ffffff",
                tab=tab,
            ),
        ),
        (
            _check("start.exact_steps", "Exactly as many steps", "img2img_fix_steps", tab=tab),
            _check("start.colour_correction", "Keep the colours of the start", "img2img_color_correction", tab=tab),
        ),
    )


def _soft(name: str, label: str, element: str, limits: tuple[float, float]) -> MoreField:
    return _slider(f"soft.{name}", label, f"soft_inpainting_{element}", limits=limits, tab="inpaint")


# What only some tabs have, before what all have.
_OF_TAB: Mapping[str, Mapping[str, tuple[tuple[MoreField, ...], ...]]] = {
    "img2img": {
        "Beginning": _beginning("img2img"),
        "Loopback": (
            (
                _slider("loopback.loops", "Loops", "loops", limits=catalogue.LOOPS_RANGE, step=1, tab="img2img"),
                _slider("loopback.final_strength", "Final strength", "final_denoising_strength", tab="img2img"),
            ),
            (
                _menu(
                    "loopback.curve",
                    "Strength curve",
                    "denoising_curve",
                    tuple(curve.value for curve in StrengthCurve),
                    tab="img2img",
                ),
            ),
        ),
        "SD upscale": (
            (
                _menu("sd_upscale.upscaler", "SD upscale with", "sd_upscale_upscaler", tab="img2img"),
                _slider(
                    "sd_upscale.scale", "SD upscale by", "sd_upscale_scale", limits=catalogue.SCALE_RANGE, tab="img2img"
                ),
            ),
            (
                _slider(
                    "sd_upscale.overlap",
                    "Overlap of its tiles (pixels)",
                    "sd_upscale_overlap",
                    limits=catalogue.SD_UPSCALE_OVERLAP_RANGE,
                    step=1,
                    tab="img2img",
                ),
            ),
        ),
    },
    "inpaint": {
        "Soft inpainting": (
            (
                _check(
                    "soft.enabled", "Soft inpainting: the mask's greys count", "soft_inpainting_enabled", tab="inpaint"
                ),
            ),
            (
                _soft("schedule_bias", "Schedule bias", "schedule_bias", catalogue.SCHEDULE_BIAS_RANGE),
                _soft("preservation_strength", "Preservation", "preservation", catalogue.PRESERVATION_STRENGTH_RANGE),
            ),
            (
                _soft("transition_contrast", "Transition contrast", "contrast", catalogue.TRANSITION_CONTRAST_RANGE),
                _soft("mask_influence", "Mask influence", "mask_influence", catalogue.MASK_INFLUENCE_RANGE),
            ),
            (
                _soft(
                    "difference_threshold", "Difference threshold", "threshold", catalogue.DIFFERENCE_THRESHOLD_RANGE
                ),
                _soft(
                    "difference_contrast", "Difference contrast", "diff_contrast", catalogue.DIFFERENCE_CONTRAST_RANGE
                ),
            ),
        ),
        "Mask": (
            (
                MoreField(
                    name="mask_blur_y",
                    label="Mask blur, vertical",
                    control=Control.OPTIONAL_WHOLE,
                    element="mask_blur_y",
                    placeholder="as mask blur",
                    tab="inpaint",
                ),
                _slider("conditional_mask_weight", "Conditional mask weight", "inpainting_mask_weight", tab="inpaint"),
            ),
        ),
        "Beginning": _beginning("inpaint"),
    },
}


# Groups of rows, in the order of the page. Element ids are A1111's where it has the field in its tabs.
_OF_ALL: Mapping[str, tuple[tuple[MoreField, ...], ...]] = {
    "Variation and noise": (
        (_whole("variation.seed", "Variation seed (-1 picks one)", "subseed"),),
        (
            _slider("variation.strength", "Variation strength", "subseed_strength"),
            _menu("noise_source", "Noise drawn on", "noise_source", tuple(source.value for source in NoiseSource)),
        ),
        (
            _whole("variation.width", "Seed from width", "seed_resize_from_w"),
            _whole("variation.height", "Seed from height", "seed_resize_from_h"),
            _whole("eta_noise_seed_delta", "Eta seed delta", "eta_noise_seed_delta"),
        ),
    ),
    "Model": (
        (
            _slider("clip_skip", "Clip skip", "clip_skip", limits=catalogue.CLIP_SKIP_RANGE, step=1),
            _menu("emphasis", "Emphasis", "emphasis", tuple(mode.value for mode in Emphasis)),
        ),
        (_menu("vae", "VAE", "vae"),),
        (
            _menu("refiner", "Refiner", "checkpoint"),
            _slider("refiner_switch_at", "Refiner switches at", "switch_at", limits=catalogue.REFINER_SWITCH_RANGE),
        ),
    ),
    "Guidance": (
        (
            _slider("guidance.rescale", "CFG rescale", "cfg_rescale"),
            _slider("guidance.skip_early", "Skip early CFG", "skip_early_cfg"),
        ),
        (
            _number("guidance.skip_negative_below", "Skip negative below sigma", "s_min_uncond"),
            _number("guidance.image_scale", "Image CFG scale", "image_cfg_scale"),
        ),
    ),
    "Extras": (
        (
            _check("extras.tiling", "Tiling", "tiling"),
            _number("extras.token_merging", "Token merging", "token_merging_ratio"),
            _number("extras.pag_scale", "Perturbed attention", "pag_scale"),
            _number("extras.sag_scale", "Self attention", "sag_scale"),
        ),
        (
            _number("extras.epsilon_scaling", "Epsilon scaling", "epsilon_scaling"),
            _number("extras.mimic_scale", "Mimic CFG scale", "mimic_scale"),
            _number("extras.threshold_percentile", "Threshold percentile", "threshold_percentile"),
        ),
        (
            _number("extras.freeu_b1", "FreeU b1", "freeu_b1"),
            _number("extras.freeu_b2", "FreeU b2", "freeu_b2"),
            _number("extras.freeu_s1", "FreeU s1", "freeu_s1"),
            _number("extras.freeu_s2", "FreeU s2", "freeu_s2"),
        ),
    ),
    "Large pictures": (
        (_menu("tiled.method", "Tiled diffusion", "tiled_diffusion_method", tuple(way.value for way in TileBlend)),),
        (
            _whole("tiled.tile", "Size of a tile (pixels)", "tiled_diffusion_tile"),
            _whole("tiled.overlap", "Overlap of tiles (pixels)", "tiled_diffusion_overlap"),
        ),
    ),
    "Sampler": (
        (
            _optional("sampler_options.eta", "Eta", "eta", "sampler's own"),
            _number("sampler_options.s_noise", "Sigma noise", "s_noise"),
            _number("sampler_options.s_churn", "Sigma churn", "s_churn"),
        ),
        (
            _number("sampler_options.s_tmin", "Churn from sigma", "s_tmin"),
            _number("sampler_options.s_tmax", "Churn to sigma", "s_tmax"),
            _whole("sampler_options.order", "UniPC order", "uni_pc_order"),
        ),
    ),
    "Schedule": (
        (
            _optional("schedule_options.sigma_min", "Smallest sigma", "sigma_min", "model's own"),
            _optional("schedule_options.sigma_max", "Largest sigma", "sigma_max", "model's own"),
            _number("schedule_options.rho", "Rho (0 = its own)", "rho"),
        ),
        (
            _number("schedule_options.alpha", "Beta's alpha", "beta_dist_alpha"),
            _number("schedule_options.beta", "Beta's beta", "beta_dist_beta"),
        ),
        (
            _check("schedule_options.discard_next_to_last", "Discard last but one", "discard_next_to_last_sigma"),
            _check("schedule_options.sgm_noise_multiplier", "SGM noise multiplier", "sgm_noise_multiplier"),
        ),
    ),
}


# The section of hires fix (`components.hires`), whose switch is above it; an empty menu or 0 is the first pass's.
HIRES: tuple[tuple[MoreField, ...], ...] = (
    (
        _menu("hires.upscaler", "Upscaler", "hr_upscaler"),
        _slider("hires.denoising_strength", "Denoising", "denoising_strength"),
    ),
    (
        _slider("hires.scale", "Upscale by", "hr_scale", limits=catalogue.HIRES_SCALE_RANGE, step=0.05),
        _slider("hires.steps", "Steps (0 = same)", "hires_steps", limits=catalogue.HIRES_STEPS_RANGE, step=1),
    ),
    (
        _whole("hires.width", "Width (0 = by scale)", "hr_resize_x"),
        _whole("hires.height", "Height (0 = by scale)", "hr_resize_y"),
    ),
    (
        _menu("hires.sampler", "Sampling method", "hr_sampler"),
        _menu("hires.schedule_type", "Schedule type", "hr_scheduler"),
    ),
    (_menu("hires.checkpoint", "Checkpoint", "hr_checkpoint"),),
    (
        _number("hires.cfg_scale", "CFG scale (0 = same)", "hr_cfg"),
        _optional("hires.token_merging", "Token merging", "token_merging_ratio_hr", "same"),
    ),
)
HIRES_SWITCH = _check("hires.enabled", "Hires fix", "enable_hr")
HIRES_PROMPTS = tuple(
    MoreField(name=name, label=label, control=Control.TEXT, element=element, placeholder="The same")
    for name, label, element in (
        ("hires.prompt", "Prompt", "hires_prompt"),
        ("hires.negative_prompt", "Negative prompt", "hires_neg_prompt"),
    )
)


def hires_fields() -> tuple[MoreField, ...]:
    """All fields of hires fix in the order of the page."""
    return (HIRES_SWITCH, *(field for row in HIRES for field in row), *HIRES_PROMPTS)


def more_groups(tab: str) -> Mapping[str, tuple[tuple[MoreField, ...], ...]]:
    """The section of `tab`: titles, and under each its rows."""
    return {**_OF_TAB.get(tab, {}), **_OF_ALL}


def more_fields(tab: str) -> tuple[MoreField, ...]:
    """All fields of `tab` in the order of the page."""
    return tuple(field for rows in more_groups(tab).values() for row in rows for field in row)


def shown_value(tab: str, name: str, value: Any) -> Any:
    """The `value` of a request's field as the form of `tab` shows it."""
    field = next((field for field in _known_fields(tab) if field.name == name), None)
    if field is not None:
        return field.shown(value)
    return value.value if isinstance(value, Choice) else value


def read_more(tab: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments for a request that the `values` of the section stand for; raises `InvalidRequest`.

    Those of hires fix are among them for txt2img; while it is off its other fields do not count.
    """
    off = {field.name for field in hires_fields()} if values.get(HIRES_SWITCH.name) is not True else set()
    fields = [field for field in _known_fields(tab) if field.name in values and field.name not in off]
    return whole_fields(BASES[tab], {field.name: field.read(values[field.name]) for field in fields})


def _known_fields(tab: str) -> tuple[MoreField, ...]:
    return (*more_fields(tab), *(hires_fields() if tab == "txt2img" else ()))
