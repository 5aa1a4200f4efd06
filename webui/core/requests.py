"""What can be asked for: one frozen type a task, holding everything that changes a pixel.

The same object comes from the page, the command line and the database; `webui.core.codec` turns it into JSON and back
without loss. Pictures inside a request are PNG bytes, so that equality and JSON are exact.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

from webui.core.geometry import Size


class Choice(str, Enum):
    """A field with a fixed set of values, which are the words the page shows (Python 3.10 has no StrEnum)."""

    __str__ = str.__str__


class ResizeMode(Choice):
    """How img2img and inpaint fit a picture of another shape into the requested size."""

    STRETCH = "Just resize"
    CROP = "Crop and resize"
    FILL = "Resize and fill"


class InpaintArea(Choice):
    """Which part of the picture inpainting works on."""

    WHOLE = "Whole picture"
    MASKED = "Only masked"


class MaskedContent(Choice):
    """What stands under the mask before the first step."""

    FILL = "fill"
    ORIGINAL = "original"
    LATENT_NOISE = "latent noise"
    LATENT_NOTHING = "latent nothing"


class Emphasis(Choice):
    """What weights in a prompt do to its encoding."""

    ORIGINAL = "Original"
    NO_NORM = "No norm"
    IGNORE = "Ignore"
    NONE = "None"


class NoiseSource(Choice):
    """Whose random stream the noise repeats: this machine's CPU or GPU, or an NVIDIA card's, on any device."""

    CPU = "CPU"
    GPU = "GPU"
    NV = "NV"


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplerOptions:
    """What a sampler may be told beyond its name; each takes what it knows. None is the sampler's own default.

    `eta` is the share of fresh noise of ancestral samplers and DDIM. `s_churn`, `s_tmin`, `s_tmax` and `s_noise` are
    those of Karras et al. 2022, algorithm 2 (`s_tmax` 0 means no limit). `order` is UniPC's.
    """

    eta: float | None = None
    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: float = 0.0
    s_noise: float = 1.0
    order: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleOptions:
    """What a schedule type may be told. None is the model's own; `rho` 0 is the schedule type's own.

    `alpha` and `beta` shape the Beta schedule. `discard_next_to_last` leaves out the last sigma but one.
    """

    sigma_min: float | None = None
    sigma_max: float | None = None
    rho: float = 0.0
    alpha: float = 0.6
    beta: float = 0.6
    discard_next_to_last: bool = False
    sgm_noise_multiplier: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Guidance:
    """How prompt and negative prompt are weighed against each other, beyond the CFG scale.

    `rescale` is phi of Lin et al. 2023 (arXiv 2305.08891, section 3.4). `skip_early` is the share of the first steps
    that go without guidance. Below the noise level `skip_negative_below` (NGMS), every other step leaves the negative
    prompt out. `image_scale` weighs the picture for edit models (Brooks et al. 2022, arXiv 2211.09800).
    """

    rescale: float = 0.0
    skip_early: float = 0.0
    skip_negative_below: float = 0.0
    image_scale: float = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Variation:
    """A second noise mixed into the first: `strength` 0…1 of the way on the sphere from the seed's to `seed`'s.

    `width` and `height` (0 = the picture's own) are the size at which the noise was first drawn ("resize seed from").
    """

    seed: int = -1
    strength: float = 0.0
    width: int = 0
    height: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Extras:
    """What is added to the sampling, each off by default; `webui.engine.extras` has the papers.

    `tiling` makes pictures that repeat without a seam. FreeU multiplies backbone (`freeu_b1`, `freeu_b2`) and skip
    features (`freeu_s1`, `freeu_s2`) of its two stages; 1 leaves them. `epsilon_scaling` divides the predicted noise.
    With `mimic_scale` above 0, dynamic thresholding gives what `cfg_scale` makes the range that this lower scale would
    give, less what lies beyond `threshold_percentile`. `token_merging` is the share of places that go through self
    attention together with another, which saves time; `pag_scale` and `sag_scale` are perturbed-attention and
    self-attention guidance's.
    """

    tiling: bool = False
    freeu_b1: float = 1.0
    freeu_b2: float = 1.0
    freeu_s1: float = 1.0
    freeu_s2: float = 1.0
    epsilon_scaling: float = 1.0
    mimic_scale: float = 0.0
    threshold_percentile: float = 100.0
    token_merging: float = 0.0
    pag_scale: float = 0.0
    sag_scale: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """What every diffusion task says. Never asked for by itself: see `Txt2Img`, `Img2Img`, `Inpaint`.

    Ranges are checked by `webui.core.validation.validate`. An empty `checkpoint` means the default one; seed -1 means
    "choose one", which `webui.core.validation.with_seed` does before a job is stored. Which seeds picture i of a job
    has is said by `alone`. `clip_skip` counts the text encoder's last layers from 1, "use the last". `vae` is
    "Automatic", "None" (the checkpoint's own) or a file's name. From the share `refiner_switch_at` of the steps on,
    `refiner`, if one is named, takes over. `eta_noise_seed_delta` is added to the seed for the noise that samplers draw
    on the way.
    """

    prompt: str = ""
    negative_prompt: str = ""
    checkpoint: str = ""
    sampler: str = "DPM++ 2M"
    schedule_type: str = "Automatic"
    steps: int = 20
    width: int = 512
    height: int = 512
    cfg_scale: float = 7.0
    seed: int = -1
    batch_size: int = 1
    batch_count: int = 1
    clip_skip: int = 1
    emphasis: Emphasis = Emphasis.ORIGINAL
    vae: str = "Automatic"
    refiner: str = ""
    refiner_switch_at: float = 0.8
    sampler_options: SamplerOptions = SamplerOptions()
    schedule_options: ScheduleOptions = ScheduleOptions()
    guidance: Guidance = Guidance()
    extras: Extras = Extras()
    variation: Variation = Variation()
    noise_source: NoiseSource = NoiseSource.CPU
    eta_noise_seed_delta: int = 0

    @property
    def size(self) -> Size:
        """Width and height of the pictures, in pixels."""
        return Size(self.width, self.height)

    @property
    def total_images(self) -> int:
        """How many pictures the request makes."""
        return self.batch_size * self.batch_count


@dataclass(frozen=True, slots=True, kw_only=True)
class Txt2Img(Generation):
    """Pictures from words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Img2Img(Generation):
    """Pictures from words and a picture; strength 0 keeps the picture, 1 ignores it."""

    init_image: bytes
    denoising_strength: float = 0.75
    resize_mode: ResizeMode = ResizeMode.STRETCH


@dataclass(frozen=True, slots=True, kw_only=True)
class Inpaint(Generation):
    """The masked part of a picture made anew; white in `mask` is what changes, and its size is the picture's.

    `mask_blur` and `padding` are in pixels of the init image. Pixels outside the blurred mask come back untouched.
    """

    init_image: bytes
    mask: bytes
    denoising_strength: float = 0.75
    resize_mode: ResizeMode = ResizeMode.STRETCH
    mask_blur: int = 4
    mask_inverted: bool = False
    area: InpaintArea = InpaintArea.WHOLE
    padding: int = 32
    masked_content: MaskedContent = MaskedContent.ORIGINAL


@dataclass(frozen=True, slots=True, kw_only=True)
class Upscale:
    """A picture enlarged by `scale`; `tile` and `overlap` are in pixels of the input, tile 0 means untiled."""

    image: bytes
    upscaler: str = "Lanczos"
    scale: float = 4.0
    tile: int = 192
    overlap: int = 16

    @property
    def total_images(self) -> int:
        """Always one."""
        return 1


Request = Txt2Img | Img2Img | Inpaint | Upscale
DiffusionRequest = Txt2Img | Img2Img | Inpaint

TASKS: dict[str, type[Txt2Img] | type[Img2Img] | type[Inpaint] | type[Upscale]] = {
    "txt2img": Txt2Img,
    "img2img": Img2Img,
    "inpaint": Inpaint,
    "upscale": Upscale,
}


def task_name(request: Request) -> str:
    """The key of `TASKS`, under which a request is stored and its pictures are filed."""
    return next(name for name, task in TASKS.items() if type(request) is task)


Diffusion = TypeVar("Diffusion", bound=DiffusionRequest)


def alone(request: Diffusion, index: int) -> Diffusion:
    """The request that makes picture `index` (from 0) of `request` by itself; its seeds must be settled.

    A1111's rule: picture i has ``seed + i``; where a variation is mixed in, all share the seed and picture i has
    ``variation.seed + i``. With strength 0 the variation's seed does nothing and stays.
    """
    changes: dict[str, object] = {"batch_size": 1, "batch_count": 1}
    if request.variation.strength > 0:
        changes["variation"] = dataclasses.replace(request.variation, seed=request.variation.seed + index)
    else:
        changes["seed"] = request.seed + index
    return dataclasses.replace(request, **changes)
