"""The two small pictures that upscalers are compared on, computed alike on every machine: one like a photo, one drawn.

They are made here, so that no photographer's licence comes with them. Upscalers restore what photos suffer, so the
first has soft shading, fine texture, a shallow focus and a sensor's noise.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

SIDE = 48
_FINE = 4  # drawn so many times larger first, for soft edges


def pictures() -> dict[str, Image.Image]:
    """Both pictures by name, RGB, `SIDE` pixels square."""
    return {"photo": photo(), "drawing": drawing()}


def photo() -> Image.Image:
    """A lit ball with a mottled skin on a receding table, seen by a noisy camera."""
    side = SIDE * _FINE
    rng = np.random.default_rng(5)
    y, x = np.mgrid[0:side, 0:side] / side
    table = 0.25 + 0.5 * y + 0.12 * np.sin(60 * x / (0.4 + y)) * (y > 0.45) + 0.15 * (_clouds(rng, side) - 0.5)
    scene = table[..., None] * np.array([0.80, 0.62, 0.45]) + (y < 0.45)[..., None] * np.array([-0.02, 0.08, 0.2])
    dx, dy = (x - 0.52) / 0.3, (y - 0.5) / 0.3
    height = np.sqrt(np.clip(1 - dx**2 - dy**2, 0, None))
    light = np.clip(-0.5 * dx - 0.6 * dy + 0.62 * height, 0, 1)
    skin = np.array([0.85, 0.32, 0.16]) * (0.65 + 0.6 * _clouds(rng, side)[..., None])
    ball = skin * (0.12 + 0.95 * light[..., None]) + 0.7 * (light**30)[..., None]
    scene = np.where((height > 0)[..., None], ball, scene)
    small = _image(scene).filter(ImageFilter.GaussianBlur(_FINE * 0.4)).resize((SIDE, SIDE), Image.Resampling.BOX)
    return _image(np.asarray(small) / 255 + rng.normal(0, 0.015, (SIDE, SIDE, 3)))


def drawing() -> Image.Image:
    """A fish in flat colours with dark outlines, as cartoons have them."""
    side = SIDE * _FINE
    image = Image.new("RGB", (side, side), (150, 214, 225))
    draw = ImageDraw.Draw(image)
    ink, width = (38, 34, 60), 6
    for left, top, size in ((20, 24, 22), (46, 10, 12), (160, 150, 16)):
        draw.ellipse((left, top, left + size, top + size), (225, 246, 248), ink, 3)
    draw.polygon(((140, 100), (182, 62), (176, 104), (184, 140)), (240, 110, 60))
    draw.line(((140, 100), (182, 62), (176, 104), (184, 140), (140, 100)), ink, width, joint="curve")
    draw.ellipse((22, 56, 156, 148), (250, 168, 44), ink, width)
    draw.chord((60, 60, 118, 144), 90, 270, (252, 236, 200), ink, 4)
    draw.ellipse((42, 78, 70, 106), (255, 255, 255), ink, 4)
    draw.ellipse((50, 86, 62, 98), ink)
    draw.arc((30, 96, 62, 130), 20, 100, ink, 5)
    for step in range(3):
        draw.line((100 + 14 * step, 84, 92 + 14 * step, 120), ink, 4)
    return image.resize((SIDE, SIDE), Image.Resampling.BOX)


def _clouds(rng: np.random.Generator, side: int) -> NDArray[np.float64]:
    """Noise of several sizes, (side, side) in 0…1."""
    total = np.zeros((side, side))
    for octave in range(5):
        cells = 4 * 2**octave
        grain = Image.fromarray(rng.integers(0, 256, (cells, cells), dtype=np.uint8))
        total += np.asarray(grain.resize((side, side), Image.Resampling.BICUBIC), float) / 255 / 2**octave
    return total / total.max()


def _image(levels: NDArray[np.float64]) -> Image.Image:
    """Levels in 0…1, (height, width, 3), as an image."""
    return Image.fromarray((levels * 255).round().clip(0, 255).astype(np.uint8))
