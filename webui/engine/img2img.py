"""Starting from a picture: where on the schedule to begin, and how a picture is fitted into the size asked for."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from webui.core.geometry import Size
from webui.core.requests import DiffusionRequest, ResizeMode, Txt2Img


@dataclass(frozen=True, slots=True)
class Walk:
    """The steps that are walked: of a schedule of `steps`, all from number `first` (from 0) on."""

    steps: int
    first: int


def walk(steps: int, strength: float, *, exact: bool = False) -> Walk:
    """How far a picture goes back into the noise, by either of A1111's rules.

    By default a schedule of `steps` is shortened: its last ``int(strength · steps) + 1`` are walked. With `exact`
    ("do exactly the amount of steps the slider specifies", and always in hires fix) the schedule is made longer,
    ``int(steps / strength)``, and its last `steps` are walked. Either way strength 1 starts from the first noise
    level, under which only the picture's overall tone remains, and strength 0 walks nothing: `first` is `steps`.
    """
    if strength == 0:
        return Walk(steps, steps)
    most = min(strength, 0.999)
    if exact:
        longer = int(steps / most)
        return Walk(longer, longer - steps)
    return Walk(steps, steps - 1 - int(most * steps))


def walk_of(request: DiffusionRequest) -> Walk:
    """The walk of a request's (first) pass: the whole schedule for words alone, else as strength says."""
    if isinstance(request, Txt2Img):
        return Walk(request.steps, 0)
    return walk(request.steps, request.denoising_strength, exact=request.start.exact_steps)


def fit(
    image: Image.Image, size: Size, mode: ResizeMode, resample: Image.Resampling = Image.Resampling.LANCZOS
) -> Image.Image:
    """`image` at exactly `size`: stretched, cropped about its centre, or whole with its edges drawn out to fill.

    `ResizeMode.LATENT` stretches here as well: masks and the pixels outside them have no latents to be enlarged in.
    """
    target = (size.width, size.height)
    if image.size == target:
        return image.copy()
    if mode in (ResizeMode.STRETCH, ResizeMode.LATENT):
        return image.resize(target, resample)
    factors = size.width / image.width, size.height / image.height
    factor = max(factors) if mode is ResizeMode.CROP else min(factors)
    width, height = max(1, round(image.width * factor)), max(1, round(image.height * factor))
    scaled = image.resize((width, height), resample)
    left, top = (size.width - width) // 2, (size.height - height) // 2
    if mode is ResizeMode.CROP:
        return scaled.crop((-left, -top, -left + size.width, -top + size.height))
    return _with_edges_drawn_out(scaled, size, left, top)


def _with_edges_drawn_out(image: Image.Image, size: Size, left: int, top: int) -> Image.Image:
    """`image` at (left, top) of a canvas, its outermost rows or columns repeated to the canvas's border."""
    canvas = Image.new(image.mode, (size.width, size.height))
    width, height = image.size
    right, bottom = left + width, top + height
    for edge, box in (
        ((0, 0, width, 1), (left, 0, right, top)),
        ((0, height - 1, width, height), (left, bottom, right, size.height)),
        ((0, 0, 1, height), (0, top, left, bottom)),
        ((width - 1, 0, width, height), (right, top, size.width, bottom)),
    ):
        strip = (box[2] - box[0], box[3] - box[1])
        if min(strip) > 0:
            canvas.paste(image.crop(edge).resize(strip), (box[0], box[1]))
    canvas.paste(image, (left, top))
    return canvas
