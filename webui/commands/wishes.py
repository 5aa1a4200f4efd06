"""The flags of `generate`, one line each: which field of a request they say, and for which tasks they are.

A flag that is not given leaves the request's own default. What the values may be is checked by
`webui.core.validation`, as for every other edge.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from webui.core.catalogue import LATENT_UPSCALERS, SAMPLERS, SCHEDULE_TYPES
from webui.core.errors import UserError
from webui.core.requests import (
    DiffusionRequest,
    Emphasis,
    Img2Img,
    Inpaint,
    InpaintArea,
    MaskedContent,
    NoiseSource,
    Outpaint,
    ResizeMode,
    StrengthCurve,
    TileBlend,
    Txt2Img,
)

Task = type[Txt2Img] | type[Img2Img] | type[Inpaint]


@dataclass(frozen=True, slots=True)
class Flag:
    """`name` without dashes says `field` (dotted). With `words`, it takes one of those; with `switch`, nothing."""

    name: str
    field: str
    kind: Callable[[str], Any] = str
    help: str = ""
    words: Mapping[str, Any] | None = None
    switch: Any = None

    @property
    def key(self) -> str:
        """Its attribute among parsed arguments."""
        return self.name.replace("-", "_")

    def add(self, group: Any) -> None:
        """Adds it to a group of a parser."""
        options: dict[str, Any] = {"help": self.help or None, "default": None}
        if self.switch is not None:
            group.add_argument(f"--{self.name}", action="store_const", const=self.switch, **options)
        elif self.words is not None:
            group.add_argument(f"--{self.name}", choices=list(self.words), **options)
        else:
            metavar = self.name.rpartition("-")[2].upper() if self.kind is str else None
            group.add_argument(f"--{self.name}", type=self.kind, metavar=metavar, **options)

    def value(self, chosen: argparse.Namespace) -> Any:
        """What it was given, as the field's value; None where it was not given."""
        value = getattr(chosen, self.key)
        return self.words[value] if self.words is not None and value is not None else value


@dataclass(frozen=True, slots=True)
class Group:
    """Flags for some tasks; `how` tells what to change where they were given for another."""

    title: str
    tasks: tuple[Task, ...]
    how: str
    flags: tuple[Flag, ...]


def _outpaint(text: str) -> Outpaint:
    try:
        left, top, right, bottom = (int(side) for side in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not LEFT,TOP,RIGHT,BOTTOM in pixels") from error
    return Outpaint(left=left, top=top, right=right, bottom=bottom)


def _values(kind: Any) -> dict[str, Any]:
    return {member.value: member for member in kind}


# fmt: off
GROUPS = (
    Group("any picture", (Txt2Img, Img2Img, Inpaint), "", (
        Flag("negative-prompt", "negative_prompt"),
        Flag("seed", "seed", int, "default: one is chosen"),
        Flag("steps", "steps", int),
        Flag("sampler", "sampler", help=", ".join(SAMPLERS)),
        Flag("scheduler", "schedule_type", help=", ".join(SCHEDULE_TYPES)),
        Flag("cfg-scale", "cfg_scale", float),
        Flag("batch-size", "batch_size", int),
        Flag("batch-count", "batch_count", int),
        Flag("model", "checkpoint", help="checkpoint, by its name in the models folder"),
        Flag("vae", "vae", help="Automatic, None (the checkpoint's own) or a file's name"),
        Flag("clip-skip", "clip_skip", int),
        Flag("emphasis", "emphasis", words=_values(Emphasis)),
        Flag("refiner", "refiner", help="checkpoint that takes over"),
        Flag("refiner-switch-at", "refiner_switch_at", float, "after this share of the steps"),
        Flag("variation-seed", "variation.seed", int),
        Flag("variation-strength", "variation.strength", float),
        Flag("eta", "sampler_options.eta", float),
        Flag("rng", "noise_source", words=_values(NoiseSource)),
        Flag("tiling", "extras.tiling", switch=True, help="a picture that repeats without a seam"),
        Flag("tiled-diffusion", "tiled.method", words=_values(TileBlend), help="denoise large pictures in tiles"),
        Flag("tiled-diffusion-tile", "tiled.tile", int, "in pixels"),
        Flag("tiled-diffusion-overlap", "tiled.overlap", int, "in pixels"),
    )),
    Group("hires fix", (Txt2Img,), "leave out --init-image, --mask and --outpaint", (
        Flag("hires-scale", "hires.scale", float),
        Flag("hires-width", "hires.width", int, "instead of --hires-scale"),
        Flag("hires-height", "hires.height", int, "instead of --hires-scale"),
        Flag("hires-upscaler", "hires.upscaler", help=", ".join((*LATENT_UPSCALERS, "or any upscaler"))),
        Flag("hires-steps", "hires.steps", int),
        Flag("hires-denoising-strength", "hires.denoising_strength", float),
        Flag("hires-sampler", "hires.sampler"),
        Flag("hires-scheduler", "hires.schedule_type"),
        Flag("hires-cfg-scale", "hires.cfg_scale", float),
        Flag("hires-prompt", "hires.prompt"),
        Flag("hires-negative-prompt", "hires.negative_prompt"),
        Flag("hires-model", "hires.checkpoint"),
    )),
    Group("img2img and inpainting", (Img2Img, Inpaint), "give --init-image", (
        Flag("denoising-strength", "denoising_strength", float, "0 keeps the picture, 1 ignores it"),
        Flag("resize-mode", "resize_mode", words={
            "stretch": ResizeMode.STRETCH, "crop": ResizeMode.CROP, "fill": ResizeMode.FILL,
            "latent": ResizeMode.LATENT,
        }),
        Flag("exact-steps", "start.exact_steps", switch=True, help="walk all steps, whatever the strength"),
        Flag("extra-noise", "start.extra_noise", float),
        Flag("colour-correction", "start.colour_correction", switch=True),
        Flag("background", "start.background", help="under transparent pictures, as #rrggbb"),
    )),
    Group("img2img", (Img2Img,), "give --init-image, and neither --mask nor --outpaint", (
        Flag("loops", "loopback.loops", int, "img2img of its own result"),
        Flag("final-denoising-strength", "loopback.final_strength", float),
        Flag("denoising-curve", "loopback.curve", words=_values(StrengthCurve)),
        Flag("sd-upscale-upscaler", "sd_upscale.upscaler", help="tile by tile over the enlarged picture"),
        Flag("sd-upscale-scale", "sd_upscale.scale", float),
        Flag("sd-upscale-overlap", "sd_upscale.overlap", int),
    )),
    Group("inpainting", (Inpaint,), "give --init-image with --mask or --outpaint", (
        Flag("outpaint", "outpaint", _outpaint, "LEFT,TOP,RIGHT,BOTTOM: pixels to grow by; needs no --mask"),
        Flag("mask-blur", "mask_blur", int, "in pixels"),
        Flag("mask-blur-y", "mask_blur_y", int, "default: as --mask-blur"),
        Flag("invert-mask", "mask_inverted", switch=True, help="what is black changes"),
        Flag("inpaint-area", "area", words={"whole": InpaintArea.WHOLE, "masked": InpaintArea.MASKED}),
        Flag("inpaint-padding", "padding", int, "pixels around the mask"),
        Flag("masked-content", "masked_content", words=_values(MaskedContent)),
        Flag("conditional-mask-weight", "conditional_mask_weight", float),
        Flag("soft-inpainting", "soft.enabled", switch=True),
    )),
)
# fmt: on


def task_of(chosen: argparse.Namespace) -> Task:
    """What the flags ask for; raises `UserError` for a mask without a picture."""
    if chosen.mask is None and chosen.outpaint is None:
        return Txt2Img if chosen.init_image is None else Img2Img
    if chosen.init_image is None:
        given = "--outpaint" if chosen.mask is None else "--mask"
        raise UserError(f"{given} is for a picture that is there; give it with --init-image.")
    return Inpaint


def wishes_of(chosen: argparse.Namespace, task: Task) -> dict[str, Any]:
    """The fields that the flags say, by dotted names; raises `UserError` for a flag that is not for `task`."""
    wishes: dict[str, Any] = {"prompt": chosen.prompt}
    for group in GROUPS:
        for flag in group.flags:
            value = flag.value(chosen)
            if value is None:
                continue
            if task not in group.tasks:
                raise UserError(f"--{flag.name} is for {group.title}; {group.how}, or leave it out.")
            wishes[flag.field] = value
    if any(field.startswith("hires.") for field in wishes):
        wishes["hires.enabled"] = True
    return wishes


EMPTY: Mapping[Task, DiffusionRequest] = {
    Txt2Img: Txt2Img(),
    Img2Img: Img2Img(init_image=b""),
    Inpaint: Inpaint(init_image=b"", mask=b""),
}
