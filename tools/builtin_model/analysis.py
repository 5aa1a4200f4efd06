"""Says what a drawn picture shows, by image analysis alone: background, colour, shape, count and place of objects.

It knows the vocabulary of `scenes` and nothing of the networks, so it can judge them. A shape is the one whose drawn
outline, at the object's size and some turn, covers the object best (intersection over union).
"""

from __future__ import annotations

import functools
import random
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tools.builtin_model.scenes import COLOURS, POSITIONS, SHAPES, Item, Scene, draw

TEMPLATE_SIZE = 48
TEMPLATE_TURNS = (-12, -8, -4, 0, 4, 8, 12)
# An outline that covers less than this is taken for no shape at all.
LEAST_OVERLAP = 0.70
# Objects under this share of the picture's area are specks.
LEAST_AREA = 0.002

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One object: its shape (or "" when none fits), its colour's name, its centre as fractions, its share of area."""

    shape: str
    colour: str
    x: float
    y: float
    area: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What a picture shows: its background's colour and its objects, the largest first."""

    background: str
    objects: tuple[Seen, ...]


def _lab(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    """Converts sRGB 0…255 (…, 3) to CIE L*a*b* under D65 (IEC 61966-2-1; CIE 15)."""
    linear = np.where(rgb / 255 <= 0.04045, rgb / 255 / 12.92, ((rgb / 255 + 0.055) / 1.055) ** 2.4)
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ matrix.T / np.array([0.9505, 1.0, 1.089])
    root = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack(
        [116 * root[..., 1] - 16, 500 * (root[..., 0] - root[..., 1]), 200 * (root[..., 1] - root[..., 2])], axis=-1
    )


def colour_name(rgb: NDArray[np.float64], palette_rgb: Mapping[str, tuple[int, int, int]] = COLOURS) -> str:
    """The name in the palette nearest to `rgb` (three values, 0…255) in L*a*b*."""
    names = tuple(palette_rgb)
    palette = _lab(np.array([palette_rgb[name] for name in names], dtype=np.float64))
    return names[int(np.argmin(np.linalg.norm(palette - _lab(rgb), axis=-1)))]


def _components(mask: Mask) -> list[Mask]:
    """The 4-connected parts of `mask`, the largest first."""
    left = mask.copy()
    parts: list[Mask] = []
    while left.any():
        part = np.zeros_like(mask)
        start = np.unravel_index(int(np.argmax(left)), left.shape)
        frontier = [(int(start[0]), int(start[1]))]
        left[frontier[0]] = False
        while frontier:
            row, column = frontier.pop()
            part[row, column] = True
            for near in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
                if 0 <= near[0] < mask.shape[0] and 0 <= near[1] < mask.shape[1] and left[near]:
                    left[near] = False
                    frontier.append(near)
        parts.append(part)
    return sorted(parts, key=lambda part: -int(part.sum()))


def _silhouette(mask: Mask) -> Mask:
    """The mask's bounding box, padded to a square and scaled to `TEMPLATE_SIZE`."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    cut = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    side = max(cut.shape)
    square = np.zeros((side, side), dtype=np.uint8)
    top, left = (side - cut.shape[0]) // 2, (side - cut.shape[1]) // 2
    square[top : top + cut.shape[0], left : left + cut.shape[1]] = cut * np.uint8(255)
    scaled = Image.fromarray(square).resize((TEMPLATE_SIZE, TEMPLATE_SIZE), Image.Resampling.BILINEAR)
    return np.asarray(scaled) > 127


@functools.cache
def _templates() -> tuple[tuple[str, Mask], ...]:
    found: list[tuple[str, Mask]] = []
    for shape in SHAPES:
        for turn in TEMPLATE_TURNS:
            item = Item(shape=shape, colour="black", x=0.5, y=0.5, radius=0.4, turn=turn)
            picture = draw(Scene(items=(item,), background="white", subject=""), 128, random.Random(0))
            found.append((shape, _silhouette(np.asarray(picture.convert("L")) < 128)))
    return tuple(found)


def shape_name(mask: Mask) -> str:
    """The shape whose outline covers `mask` best, or "" when none covers at least `LEAST_OVERLAP` of the union."""
    silhouette = _silhouette(mask)
    overlap, shape = max(
        (float((silhouette & template).sum() / (silhouette | template).sum()), shape)
        for shape, template in _templates()
    )
    return shape if overlap >= LEAST_OVERLAP else ""


def _ground(pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    """The median colour of the picture's border."""
    band = max(2, pixels.shape[0] // 32)
    sides = (pixels[:band], pixels[-band:], pixels[:, :band], pixels[:, -band:])
    return np.median(np.concatenate([side.reshape(-1, 3) for side in sides]), axis=0)


def ground_distance(image: Image.Image) -> NDArray[np.float64]:
    """How far each pixel's colour is from the plain ground's, in L*a*b*: (H, W)."""
    pixels = np.asarray(image.convert("RGB"), dtype=np.float64)
    return np.linalg.norm(_lab(pixels) - _lab(_ground(pixels)), axis=-1)


def ground_colour(image: Image.Image) -> NDArray[np.float64]:
    """The colour of the plain ground, three values in 0…255."""
    return _ground(np.asarray(image.convert("RGB"), dtype=np.float64))


def look(image: Image.Image) -> Sight:
    """Analyses an RGB picture with a plain background that reaches its border."""
    pixels = np.asarray(image.convert("RGB"), dtype=np.float64)
    height, width = pixels.shape[:2]
    ground = _ground(pixels)
    distance = ground_distance(image)
    strong = distance[distance > 12]
    if strong.size <= LEAST_AREA * distance.size:
        return Sight(background=colour_name(ground), objects=())
    objects: list[Seen] = []
    for blob in _components(distance > max(12.0, float(np.percentile(strong, 75)) / 4)):
        if blob.mean() < LEAST_AREA:
            break
        # The edge of a blurred outline lies half way between the background and the object.
        core = _components(blob & (distance > float(np.percentile(distance[blob], 75)) / 2))[0]
        rows, columns = np.nonzero(core)
        inside = pixels[core][distance[core] >= np.median(distance[core])]
        objects.append(
            Seen(
                shape=shape_name(core),
                colour=colour_name(np.median(inside, axis=0)),
                x=float((columns.min() + columns.max() + 1) / 2 / width),
                y=float((rows.min() + rows.max() + 1) / 2 / height),
                area=float(core.mean()),
            )
        )
    return Sight(background=colour_name(ground), objects=tuple(objects))


def place_name(seen: Seen) -> str:
    """The name in `POSITIONS` nearest to the object's centre."""
    return min(POSITIONS, key=lambda name: (POSITIONS[name][0] - seen.x) ** 2 + (POSITIONS[name][1] - seen.y) ** 2)
