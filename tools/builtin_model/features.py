"""What a drawing looks like, as numbers that owe nothing to the model: outlines (HOG) and colours (a histogram).

The object is cut out of its plain ground and brought to one size, so place, size and ground do not count. HOG follows
Dalal & Triggs 2005 without block overlap.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tools.builtin_model.analysis import ground_distance
from tools.builtin_model.art import Sprite
from tools.builtin_model.pictures import TINTS, Studio, colourful

SIDE = 64
CELL = 8
ORIENTATIONS = 9
COLOUR_BINS = 5
# A pixel this far from the ground in L*a*b* belongs to the object.
LEAST_DISTANCE = 14.0

Features = NDArray[np.float32]


def cut_out(image: Image.Image) -> tuple[NDArray[np.float64], NDArray[np.bool_]] | None:
    """The object's pixels (`SIDE`, `SIDE`, 3) in 0…255, grey around it, and its mask; None on an empty ground."""
    distance = ground_distance(image)
    mask = distance > max(LEAST_DISTANCE, float(distance.max()) / 6)
    if mask.mean() < 0.003:
        return None
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    side = max(box[2] - box[0], box[3] - box[1])
    corner = ((side - box[2] + box[0]) // 2, (side - box[3] + box[1]) // 2)
    plain = Image.new("RGB", (side, side), (128, 128, 128))
    shade = Image.new("L", (side, side), 0)
    stencil = Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).crop(box)
    plain.paste(image.convert("RGB").crop(box), corner, stencil)
    shade.paste(stencil, corner)
    pixels = np.asarray(plain.resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float64)
    return pixels, np.asarray(shade.resize((SIDE, SIDE), Image.Resampling.BOX)) > 127


def _outlines(grey: NDArray[np.float64]) -> NDArray[np.float64]:
    """Histograms of gradient directions over cells, their strengths' roots, of unit length."""
    down, right = np.gradient(grey)
    strength = np.hypot(down, right)
    direction = np.mod(np.arctan2(down, right), np.pi) / np.pi * ORIENTATIONS
    bins = np.minimum(direction.astype(int), ORIENTATIONS - 1)
    cells = SIDE // CELL
    histogram = np.zeros((cells, cells, ORIENTATIONS))
    rows, columns = np.indices(grey.shape) // CELL
    np.add.at(histogram, (rows, columns, bins), strength)
    flat = np.sqrt(histogram).ravel()
    return flat / max(1e-9, float(np.linalg.norm(flat)))


def _colours(pixels: NDArray[np.float64], mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """A histogram over coarse RGB of the object's pixels, square-rooted, of unit length."""
    coarse = np.minimum((pixels[mask] / 256 * COLOUR_BINS).astype(int), COLOUR_BINS - 1)
    index = coarse @ np.array([COLOUR_BINS * COLOUR_BINS, COLOUR_BINS, 1])
    histogram = np.sqrt(np.bincount(index, minlength=COLOUR_BINS**3).astype(np.float64))
    return histogram / max(1e-9, float(np.linalg.norm(histogram)))


def features(image: Image.Image) -> Features | None:
    """Outlines and colours of the object on a plain ground as one vector; None where nothing is to be seen."""
    cut = cut_out(image)
    if cut is None:
        return None
    pixels, mask = cut
    return np.concatenate([_outlines(pixels.mean(-1)), 0.6 * _colours(pixels, mask)]).astype(np.float32)


def dominant_tint(image: Image.Image) -> str:
    """The name in `TINTS` nearest to the median hue of the object's saturated pixels, or "" when it has none."""
    cut = cut_out(image)
    if cut is None:
        return ""
    pixels, mask = cut
    hsv = np.asarray(Image.fromarray(pixels.round().astype(np.uint8)).convert("HSV"), dtype=np.float64)
    seen = hsv[mask & (hsv[..., 1] > 70) & (hsv[..., 2] > 40)]
    if len(seen) < 0.1 * mask.sum():
        return ""
    angle = seen[:, 0] / 256 * 2 * np.pi

    def apart(name: str) -> float:
        return float(np.abs(np.angle(np.exp(1j * (angle - TINTS[name] / 256 * 2 * np.pi)))).sum())

    return min(TINTS, key=apart)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gallery:
    """The features of every trained drawing and of its mirror image, to look others up in."""

    subjects: tuple[str, ...]  # one a row
    styles: tuple[str, ...]
    tintable: tuple[bool, ...]  # whether its hues can be turned
    rows: NDArray[np.float32]

    def nearest(self, wanted: Features, count: int) -> list[str]:
        """The `count` subjects nearest to `wanted`, the nearest first, each once."""
        order = np.argsort(np.linalg.norm(self.rows - wanted, axis=1))
        return list(dict.fromkeys(self.subjects[index] for index in order))[:count]

    def write(self, path: Path) -> None:
        """Writes the gallery as a compressed archive of arrays."""
        np.savez_compressed(
            path,
            subjects=np.array(self.subjects),
            styles=np.array(self.styles),
            tintable=np.array(self.tintable),
            rows=self.rows.astype(np.float16),
        )


def read_gallery(path: Path) -> Gallery:
    """What `Gallery.write` wrote."""
    with np.load(path) as stored:
        values: dict[str, Any] = {name: stored[name] for name in stored.files}
    return Gallery(
        subjects=tuple(values["subjects"].tolist()),
        styles=tuple(values["styles"].tolist()),
        tintable=tuple(values["tintable"].tolist()),
        rows=values["rows"].astype(np.float32),
    )


def make_gallery(studio: Studio, size: int) -> Gallery:
    """The gallery of all drawings of `studio`, painted at `size` on two grounds."""
    found: list[tuple[Sprite, bool, Features]] = []
    for sprite in studio.sprites:
        for ground in ("gray", "purple"):
            for mirrored in (False, True):
                image = studio.paint(studio.alone(sprite, ground, mirrored=mirrored), size, random.Random(0))
                seen = features(image)
                if seen is not None:
                    found.append((sprite, colourful(studio.drawing(sprite)), seen))
    return Gallery(
        subjects=tuple(sprite.subject for sprite, _, _ in found),
        styles=tuple(sprite.style for sprite, _, _ in found),
        tintable=tuple(tintable for _, tintable, _ in found),
        rows=np.stack([seen for _, _, seen in found]),
    )
