"""Colour correction: a made picture takes on the colours of the one it was made from, and keeps its own light.

What A1111 offers under that name: histograms matched channel by channel in Lab, of which only hue and saturation are
used. Arrays are worked through in strips of rows, so that a large picture needs no large copies of itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[np.floating[Any]]

_ROWS = 128
_LEVELS = 256

# sRGB's linear light to CIE XYZ, divided by the white point D65 (IEC 61966-2-1).
_WHITE = np.array([0.950456, 1.0, 1.089058])
_TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) / _WHITE[:, None]
_FROM_XYZ = np.linalg.inv(_TO_XYZ)
# CIE 15: f(XYZ) to L (0…100), a and b, and back.
_TO_LAB = np.array([[0.0, 116.0, 0.0], [500.0, -500.0, 0.0], [0.0, 200.0, -200.0]])
_FROM_LAB = np.linalg.inv(_TO_LAB)
_DELTA = 6 / 29
# The range of Lab that histograms are counted over.
_LOW = np.array([0.0, -128.0, -128.0], dtype=np.float32)
_SPAN = np.array([100.0, 255.0, 255.0], dtype=np.float32)
# Luma of W3C, "Compositing and Blending Level 1", section 10 (non-separable blend modes).
_LUMA = np.array([0.3, 0.59, 0.11], dtype=np.float32)


class ColourCorrection:
    """Gives pictures of any size the colours of `target` (RGB), as ``correction(made)``."""

    def __init__(self, target: Image.Image) -> None:
        self._wanted = _cumulative(target)

    def __call__(self, made: Image.Image) -> Image.Image:
        """`made` (RGB) with its own luminosity and hues and saturations matched to the target's."""
        levels = np.arange(_LEVELS, dtype=np.float32)
        # Each level goes to the target's level of the same rank.
        tables = [
            np.interp(have, want, levels).astype(np.float32)
            for have, want in zip(_cumulative(made), self._wanted, strict=True)
        ]
        strips: list[NDArray[np.uint8]] = []
        for rows in _strips(made):
            places = (to_lab(rows) - _LOW) / _SPAN * (_LEVELS - 1)
            matched = np.stack(
                [np.interp(places[..., channel], levels, table) for channel, table in enumerate(tables)], axis=-1
            )
            colours = from_lab((matched / (_LEVELS - 1) * _SPAN + _LOW).astype(np.float32))
            lit = _with_luminosity(colours, rows @ _LUMA)
            strips.append(np.clip(lit * 255 + 0.5, 0, 255).astype(np.uint8))
        return Image.fromarray(np.concatenate(strips))


def to_lab(rgb: Array) -> Array:
    """SRGB (…, 3) in 0…1 → CIE L*a*b* under D65 (IEC 61966-2-1, CIE 15)."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = linear @ _TO_XYZ.T
    curved = np.where(xyz > _DELTA**3, np.cbrt(xyz), xyz / (3 * _DELTA**2) + 4 / 29)
    lab = curved @ _TO_LAB.T
    lab[..., 0] -= 16
    return lab.astype(np.float32)


def from_lab(lab: Array) -> Array:
    """The inverse of `to_lab`; colours outside sRGB are clipped to 0…1."""
    curved = (lab + np.array([16.0, 0.0, 0.0])) @ _FROM_LAB.T
    xyz = np.where(curved > _DELTA, curved**3, (curved - 4 / 29) * (3 * _DELTA**2))
    linear = np.clip(xyz @ _FROM_XYZ.T, 0, 1)
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055).astype(np.float32)


def _with_luminosity(colours: Array, luma: Array) -> Array:
    """W3C's SetLum and ClipColor: `colours` (…, 3) shifted to `luma` (…), drawn towards grey where that overflows."""
    shifted = colours + (luma - colours @ _LUMA)[..., None]
    low, high, grey = shifted.min(-1, keepdims=True), shifted.max(-1, keepdims=True), luma[..., None]
    # How far each place may stand from its grey without leaving 0…1.
    room = np.minimum(
        np.where(low < 0, grey / np.maximum(grey - low, 1e-6), 1),
        np.where(high > 1, (1 - grey) / np.maximum(high - grey, 1e-6), 1),
    )
    return grey + (shifted - grey) * room


def _cumulative(image: Image.Image) -> NDArray[np.float64]:
    """(3, 256): the share of pixels whose L, a and b lie at most at each level."""
    counts = np.zeros((3, _LEVELS))
    for rows in _strips(image):
        places = np.rint((to_lab(rows) - _LOW) / _SPAN * (_LEVELS - 1)).astype(np.int64).clip(0, _LEVELS - 1)
        for channel in range(3):
            counts[channel] += np.bincount(places[..., channel].ravel(), minlength=_LEVELS)
    return counts.cumsum(axis=1) / (image.width * image.height)


def _strips(image: Image.Image) -> Iterator[Array]:
    """`image` (RGB) as (rows, width, 3) in 0…1, from top to bottom."""
    for top in range(0, image.height, _ROWS):
        box = (0, top, image.width, min(top + _ROWS, image.height))
        yield np.asarray(image.crop(box), dtype=np.float32) / 255
