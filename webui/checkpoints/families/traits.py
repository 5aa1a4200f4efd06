"""What tells one Stable Diffusion from another beyond the shapes of its weights, as plain data.

All of them have the same three parts: CLIP text encoders, a UNet with cross-attention, an autoencoder. A family is its
`Traits` and the marks by which it is recognised; `single_file` and `folders` read both kinds of model by them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from webui.checkpoints.families.base import (
    Conditioning,
    LatentToRgb,
    PredictionType,
    TextEncoderName,
    TextModule,
    TextNaming,
    UNetInput,
)
from webui.core.errors import UnsupportedModel

# How many numbers the UNet is told beside the pooled text: two sizes and a corner; one size, a corner and a score.
SIZE_NUMBERS: Mapping[Conditioning, int] = {"sdxl": 6, "refiner": 5}


def published_schedule() -> Mapping[str, Any]:
    """The noise schedule that Stable Diffusion was trained with, in all versions but the upscaler."""
    return {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}


@dataclass(frozen=True, slots=True, kw_only=True)
class TextTraits:
    """A text encoder of a family: where a single file keeps it (`prefixes`, in order), and what is read from it.

    `naming` is that of its authors: OpenAI's, with their quick GELU, or open_clip's. Where `drops_last`, the last layer
    of a file in its authors' form is read by nobody and is left out. The fields after `naming` are those of
    `TextEncoderConfig`.
    """

    component: TextModule
    name: TextEncoderName
    prefixes: tuple[str, ...]
    naming: TextNaming
    pad_token: int
    layer: int
    final_norm: bool
    pooled: bool
    drops_last: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What the weights' shapes do not tell.

    `heads` gives the attention heads of a level of so many channels, 0 where it has none for such a level.
    `prediction` stands where a file says nothing; None means that such files differ. `side` is the native size in
    pixels by what is predicted. `colours` are for previews, of models with the published text encoder's width.
    """

    name: str
    title: str
    text_encoders: tuple[TextTraits, ...]
    heads: Callable[[int], int]
    prediction: PredictionType | None
    scaling_factor: float
    side: Callable[[PredictionType | None], int]
    colours: LatentToRgb | None
    conditioning: Conditioning = "text"
    schedule: Mapping[str, Any] = field(default_factory=published_schedule)


def heads_of_width(head: int) -> Callable[[int], int]:
    """The rule of versions 2 and XL: heads of `head` channels each."""
    return lambda channels: 0 if channels % head else channels // head


def heads_in_all(count: int) -> Callable[[int], int]:
    """The rule of version 1 and the upscaler: `count` heads at every level."""
    return lambda channels: 0 if channels % count else count


def unet_input(in_channels: int, latent_channels: int, source: str) -> UNetInput:
    """What the first convolution takes beside the latents; raises `UnsupportedModel` for an unknown number."""
    kinds: dict[int, UNetInput] = {
        0: "latents",
        1: "depth",
        3: "low_res",
        latent_channels: "edit",
        latent_channels + 1: "inpaint",
    }
    try:
        return kinds[in_channels - latent_channels]
    except KeyError as error:
        raise UnsupportedModel(
            f"{source} has a UNet with {in_channels} input channels for {latent_channels} of the latents; Atelier knows"
            " none, a mask, a picture or both beside them."
        ) from error
