"""What can be asked for: one frozen type a task, holding everything that changes a pixel.

The same object comes from the page, the command line and the database; `webui.core.codec` turns it into JSON and back
without loss. Pictures inside a request are PNG bytes, so that equality and JSON are exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """What every diffusion task says. Never asked for by itself: see `Txt2Img`, `Img2Img`, `Inpaint`.

    Ranges are checked by `webui.core.validation.validate`. An empty `checkpoint` means the default one; seed -1 means
    "choose one", which `webui.core.validation.with_seed` does before a job is stored. Picture i of a job has seed
    ``seed + i``.
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
