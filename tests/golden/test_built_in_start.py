"""The built-in model begins with a picture: strength means something, and what is masked changes as asked, no more."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from webui.checkpoints.scan import CheckpointFolder
from webui.core.events import ImageReady
from webui.core.ports import Control
from webui.core.requests import (
    DiffusionRequest,
    Img2Img,
    Inpaint,
    InpaintArea,
    MaskedContent,
    Outpaint,
    SoftInpainting,
    Txt2Img,
)
from webui.engine.manager import EngineManager
from webui.settings.schema import Settings

MODELS = Path(__file__).resolve().parents[2] / "models"
COLOURS = {
    "red": (231, 53, 39),
    "blue": (38, 90, 220),
    "yellow": (253, 213, 40),
    "black": (0, 0, 0),
    "grey": (128, 128, 128),
    "white": (255, 255, 255),
}
SIDE = 256
STEPS = 20  # with half as many the model does not finish what it begins
MASK = Image.new("L", (SIDE, SIDE), 0)
ImageDraw.Draw(MASK).rectangle((56, 56, 199, 199), fill=255)

Make = Callable[[DiffusionRequest], Image.Image]


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def red_circle() -> Image.Image:
    picture = Image.new("RGB", (512, 512), COLOURS["blue"])
    ImageDraw.Draw(picture).ellipse((160, 160, 352, 352), fill=COLOURS["red"])
    return picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


START = red_circle()


@pytest.fixture(scope="module")
def make() -> Make:
    engine = EngineManager(CheckpointFolder(MODELS), Settings)

    def make(request: DiffusionRequest) -> Image.Image:
        return next(
            event.image for event in engine.generate(request, control=Control()) if isinstance(event, ImageReady)
        )

    return make


def values(**more: object) -> dict[str, object]:
    return {"width": SIDE, "height": SIDE, "steps": STEPS, "seed": 2} | more


def inpainting(**more: object) -> Inpaint:
    base = {
        "prompt": "a yellow circle on a blue background", "init_image": png(START), "mask": png(MASK), "mask_blur": 2,
        "denoising_strength": 1.0,
    }  # fmt: skip
    return Inpaint(**values(**(base | more)))


def distance(one: Image.Image, other: Image.Image) -> float:
    return float(np.abs(np.asarray(one, float) - np.asarray(other, float)).mean())


def colour(picture: Image.Image, left: int, top: int, right: int, bottom: int) -> np.ndarray:
    return np.asarray(picture.crop((left, top, right, bottom)), float).mean((0, 1))


def nearest(found: np.ndarray) -> str:
    """The name of the colour that `found` is nearest to."""
    return min(COLOURS, key=lambda name: float(np.linalg.norm(found - COLOURS[name])))


def test_strength_goes_from_the_picture_to_an_unrelated_one(make: Make) -> None:
    words = "a green square on a yellow background"
    unrelated = make(Txt2Img(**values(prompt=words)))
    made = [
        make(Img2Img(**values(prompt=words, init_image=png(START), denoising_strength=strength)))
        for strength in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    far = distance(unrelated, START)
    distances = [distance(picture, START) for picture in made]
    assert far > 60
    # Through the VAE and nothing else.
    assert distances[0] < 8
    # It ignores the picture: as far from it as one that never saw it, and nearly that one, from the same noise.
    assert distances[-1] == pytest.approx(far, rel=0.1)
    assert distance(made[-1], unrelated) < 0.1 * far
    assert all(after >= before - 0.02 * far for before, after in itertools.pairwise(distances)), distances


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"masked_content": MaskedContent.FILL, "area": InpaintArea.MASKED, "padding": 32},
        {"soft": SoftInpainting(enabled=True), "mask_blur": 12},
    ],
    ids=["whole", "masked", "soft"],
)
def test_the_masked_circle_changes_its_colour_and_nothing_else_changes(make: Make, how: dict[str, object]) -> None:
    request = inpainting(**how)
    made = make(request)
    outside = np.asarray(MASK.filter(ImageFilter.GaussianBlur(request.mask_blur))) == 0
    assert made.size == START.size
    assert np.array_equal(np.asarray(made)[outside], np.asarray(START)[outside])
    assert nearest(colour(made, 112, 112, 144, 144)) == "yellow"


def test_a_picture_grows_in_its_own_colours(make: Make) -> None:
    half = START.crop((0, 0, 192, SIDE))
    words = "a red circle on a blue background"
    outpaint = Outpaint(right=64)
    made = make(
        inpainting(prompt=words, init_image=png(half), mask=b"", outpaint=outpaint, masked_content=MaskedContent.FILL)
    )
    assert made.size == (SIDE, SIDE)
    # Eight pixels are remade beside the seam, and the blur reaches six further.
    assert np.array_equal(np.asarray(made)[:, : 192 - 14], np.asarray(half)[:, : 192 - 14])
    assert nearest(colour(made, 200, 8, 248, 248)) == "blue"
