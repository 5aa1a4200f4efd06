"""What can be asked for: one frozen type a task, holding everything that changes a pixel.

The same object comes from the page, the command line and the database; `webui.core.codec` turns it into JSON and back
without loss. Pictures inside a request are PNG bytes, so that equality and JSON are exact.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

from webui.core.catalogue import DIMENSION_STEP
from webui.core.geometry import Size


class Choice(str, Enum):
    """A field with a fixed set of values, which are the words the page shows (Python 3.10 has no StrEnum)."""

    __str__ = str.__str__


class ResizeMode(Choice):
    """How img2img and inpaint fit a picture of another shape into the requested size."""

    STRETCH = "Just resize"
    CROP = "Crop and resize"
    FILL = "Resize and fill"
    LATENT = "Just resize (latent upscale)"


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


class TileBlend(Choice):
    """How tiles of a large picture are denoised as one: their mean (Bar-Tal et al. 2023, "MultiDiffusion"), or weighed
    by a bell over each tile (Jiménez 2023, "Mixture of Diffusers").
    """

    NONE = "None"
    MULTIDIFFUSION = "MultiDiffusion"
    MIXTURE = "Mixture of Diffusers"


class StrengthCurve(Choice):
    """How the denoising strength goes from its first to its final value over the loops of a loopback."""

    AGGRESSIVE = "Aggressive"
    LINEAR = "Linear"
    LAZY = "Lazy"


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
class TiledDiffusion:
    """Denoising by overlapping tiles (pixels of the picture), so that a picture may be larger than the model's own."""

    method: TileBlend = TileBlend.NONE
    tile: int = 768
    overlap: int = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class HiresFix:
    """A second pass over the enlarged picture. `upscaler` is a latent mode's or a pixel upscaler's name.

    The size is `width` x `height`, or `scale` times the first pass's where both are 0; a side that is 0 follows the
    other. `steps` 0, `cfg_scale` 0, an empty name, an empty prompt and a `token_merging` of None mean the first pass's.
    Where `first_pass` holds a finished picture (PNG), the first pass is that picture.
    """

    enabled: bool = False
    upscaler: str = "Latent"
    scale: float = 2.0
    width: int = 0
    height: int = 0
    steps: int = 0
    denoising_strength: float = 0.7
    sampler: str = ""
    schedule_type: str = ""
    cfg_scale: float = 0.0
    prompt: str = ""
    negative_prompt: str = ""
    checkpoint: str = ""
    token_merging: float | None = None
    first_pass: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class StartOptions:
    """How a request begins with its picture.

    `exact_steps` walks as many steps as are asked for, whatever the strength; else strength leaves steps out.
    `extra_noise` is a sigma added to the first noise level's, without the schedule knowing. `colour_correction` gives
    the result the colours of the start. `background` (#rrggbb) stands under transparent pictures.
    """

    exact_steps: bool = False
    extra_noise: float = 0.0
    colour_correction: bool = False
    background: str = "#ffffff"


@dataclass(frozen=True, slots=True, kw_only=True)
class Loopback:
    """Img2img of its own result, `loops` times in all; the strength goes to `final_strength` along `curve`.

    Each result is a picture of the job, made from the one before it with the next seed.
    """

    loops: int = 1
    final_strength: float = 0.5
    curve: StrengthCurve = StrengthCurve.LINEAR


@dataclass(frozen=True, slots=True, kw_only=True)
class SdUpscale:
    """Img2img tile by tile over the picture enlarged by `upscaler`, "" for not; tiles have the request's size.

    `overlap` is in pixels of the enlarged picture.
    """

    upscaler: str = ""
    scale: float = 2.0
    overlap: int = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftInpainting:
    """A gradual mask: each place changes as much as the mask's grey says, and the result is blended by what changed.

    The parameters are A1111's: `schedule_bias` bends how fast the original is let go over the steps,
    `preservation_strength` how firmly it is kept, `transition_contrast` sharpens the transition; the last three say
    how the finished pixels are blended.
    """

    enabled: bool = False
    schedule_bias: float = 1.0
    preservation_strength: float = 0.5
    transition_contrast: float = 4.0
    mask_influence: float = 0.0
    difference_threshold: float = 0.5
    difference_contrast: float = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outpaint:
    """How many pixels a picture grows on each side; what is new is masked."""

    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0

    @property
    def grows(self) -> bool:
        """Whether there is anything new."""
        return (self.left, self.top, self.right, self.bottom) != (0, 0, 0, 0)


def rounded_outpaint(picture: Size, outpaint: Outpaint) -> Outpaint:
    """`outpaint` with a few pixels more where `picture` would not grow to a size that can be made (multiples of 8).

    They are added to a side that grows anyway, the right or the lower one if both or neither do.
    """
    width, height = picture.width + outpaint.left + outpaint.right, picture.height + outpaint.top + outpaint.bottom
    more_x, more_y = -width % DIMENSION_STEP, -height % DIMENSION_STEP
    only_left, only_top = outpaint.left and not outpaint.right, outpaint.top and not outpaint.bottom
    return Outpaint(
        left=outpaint.left + (more_x if only_left else 0),
        top=outpaint.top + (more_y if only_top else 0),
        right=outpaint.right + (0 if only_left else more_x),
        bottom=outpaint.bottom + (0 if only_top else more_y),
    )


def grown_size(picture: Size, outpaint: Outpaint) -> Size:
    """The size that `picture` has after `outpaint`, in multiples of 8: what width and height a request should have."""
    sides = rounded_outpaint(picture, outpaint)
    return Size(picture.width + sides.left + sides.right, picture.height + sides.top + sides.bottom)


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
    tiled: TiledDiffusion = TiledDiffusion()
    variation: Variation = Variation()
    noise_source: NoiseSource = NoiseSource.CPU
    eta_noise_seed_delta: int = 0

    @property
    def size(self) -> Size:
        """Width and height of the pictures, in pixels."""
        return Size(self.width, self.height)

    @property
    def images_per_batch(self) -> int:
        """How many pictures each of the `batch_count` batches makes; a request may go on after any whole batch."""
        return self.batch_size

    @property
    def total_images(self) -> int:
        """How many pictures the request makes."""
        return self.images_per_batch * self.batch_count


@dataclass(frozen=True, slots=True, kw_only=True)
class Txt2Img(Generation):
    """Pictures from words; with `hires`, made larger in a second pass."""

    hires: HiresFix = HiresFix()


@dataclass(frozen=True, slots=True, kw_only=True)
class Img2Img(Generation):
    """Pictures from words and a picture; strength 0 keeps the picture, 1 ignores it."""

    init_image: bytes
    denoising_strength: float = 0.75
    resize_mode: ResizeMode = ResizeMode.STRETCH
    start: StartOptions = StartOptions()
    loopback: Loopback = Loopback()
    sd_upscale: SdUpscale = SdUpscale()

    @property
    def images_per_batch(self) -> int:
        """Those of all loops: first the loops of the batch's first picture, then those of the next."""
        return self.batch_size * self.loopback.loops


@dataclass(frozen=True, slots=True, kw_only=True)
class Inpaint(Generation):
    """The masked part of a picture made anew; white in `mask` is what changes, and its size is the picture's.

    `mask_blur`, `mask_blur_y` (None: the same) and `padding` are in pixels of the init image. Pixels outside the
    blurred mask come back untouched. `conditional_mask_weight` says how much of the picture under the mask is hidden
    from inpainting checkpoints. With `outpaint` the picture grows first, and `mask` may be empty.
    """

    init_image: bytes
    mask: bytes
    denoising_strength: float = 0.75
    resize_mode: ResizeMode = ResizeMode.STRETCH
    start: StartOptions = StartOptions()
    mask_blur: int = 4
    mask_blur_y: int | None = None
    mask_inverted: bool = False
    area: InpaintArea = InpaintArea.WHOLE
    padding: int = 32
    masked_content: MaskedContent = MaskedContent.ORIGINAL
    conditional_mask_weight: float = 1.0
    soft: SoftInpainting = SoftInpainting()
    outpaint: Outpaint = Outpaint()


@dataclass(frozen=True, slots=True, kw_only=True)
class FaceRestoration:
    """Faces made anew by `model`, "" for not; `visibility` is its share in the result.

    `weight` is CodeFormer's fidelity, from 0 (free) to 1 (faithful).
    """

    model: str = ""
    visibility: float = 1.0
    weight: float = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffusionUpscaler:
    """What an upscaler that is a diffusion model is told beside the picture (Stable Diffusion x4 upscaler).

    `noise_level` is how much noise is added to the picture that it sees, in steps of its schedule.
    """

    prompt: str = ""
    negative_prompt: str = ""
    steps: int = 20
    cfg_scale: float = 7.0
    noise_level: int = 20
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Upscale:
    """A picture enlarged by `scale`; `tile` and `overlap` are in pixels of the input, tile 0 means untiled.

    With `width` and `height` the result has that size: cropped about its centre where `crop`, else fitted into it.
    `upscaler_2`, "" for none, is blended in by `upscaler_2_visibility`.
    """

    image: bytes
    upscaler: str = "Lanczos"
    scale: float = 4.0
    width: int = 0
    height: int = 0
    crop: bool = True
    upscaler_2: str = ""
    upscaler_2_visibility: float = 0.5
    tile: int = 192
    overlap: int = 16
    faces: FaceRestoration = FaceRestoration()
    diffusion: DiffusionUpscaler = DiffusionUpscaler()

    @property
    def images_per_batch(self) -> int:
        """Always one."""
        return 1

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
