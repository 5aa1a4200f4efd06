"""A face brought upright into a square of 512 pixels, and back into its picture.

Pixels are at whole numbers, so the middle of the first one is (0, 0). Arrays of colours are (h, w, 3) float32 in 0…255.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Numbers = NDArray[np.float64]
Colours = NDArray[np.float32]

SIDE = 512
# Where FFHQ's alignment (Karras et al. 2019, arXiv 1812.04948, appendix A) puts eyes, nose and the corners of the mouth
# on the mean: what the restorers were trained with.
TEMPLATE: Numbers = np.array(
    [
        [192.98138, 239.94708],
        [318.90277, 240.19360],
        [256.63416, 314.01935],
        [201.26117, 371.41043],
        [313.08905, 371.15118],
    ]
)
# The restored face fades into the picture over this share of the square, for the square's border is no face any more.
_FEATHER = 0.1
_MARGIN = 4  # pixels about a region that the bicubic filter may see


@dataclass(frozen=True, slots=True, eq=False)
class Similarity:
    """``q = matrix @ p + shift``: turning, one scale for both directions, and moving."""

    matrix: Numbers  # (2, 2)
    shift: Numbers  # (2,)

    @property
    def scale(self) -> float:
        """How much larger things become."""
        return math.sqrt(abs(float(np.linalg.det(self.matrix))))

    def inverse(self) -> Similarity:
        """The way back."""
        matrix = np.linalg.inv(self.matrix).astype(np.float64)
        return Similarity(matrix, -matrix @ self.shift)

    def __call__(self, points: Numbers) -> Numbers:
        """Points (…, 2), moved."""
        return points @ self.matrix.T + self.shift


def similarity(source: Numbers, target: Numbers) -> Similarity:
    """What brings the points `source` (N, 2) closest to `target` by least squares, without mirroring.

    Umeyama 1991, "Least-squares estimation of transformation parameters between two point patterns", eqs. 40 to 42.
    """
    source_mean, target_mean = source.mean(axis=0), target.mean(axis=0)
    centred = source - source_mean
    left, values, right = np.linalg.svd((target - target_mean).T @ centred / len(source))
    signs = np.array([1.0, np.sign(np.linalg.det(left) * np.linalg.det(right))])
    scale = float((values * signs).sum() / (centred**2).sum(axis=1).mean())
    matrix = scale * (left * signs) @ right
    return Similarity(matrix, target_mean - matrix @ source_mean)


def extract(image: Image.Image, to_square: Similarity) -> Colours:
    """The square of 512 pixels that `to_square` makes of the RGB picture, mirrored where it ends."""
    left, top, right, bottom = _region(to_square)
    rows, columns = _mirrored(top, bottom, image.height), _mirrored(left, right, image.width)
    pixels = np.asarray(image)[rows][:, columns].astype(np.float32)
    return _warped(pixels, _from_corner(to_square, left, top), SIDE, SIDE)


def paste(image: Image.Image, face: Colours, to_square: Similarity, visibility: float) -> Image.Image:
    """The RGB picture with the square `face` laid over the place it came from, by `visibility`, fading to its border.

    Pixels outside that place are not touched.
    """
    left, top, right, bottom = _region(to_square)
    left, top, right, bottom = max(left, 0), max(top, 0), min(right, image.width), min(bottom, image.height)
    if right <= left or bottom <= top:
        return image
    here = _from_corner(to_square, left, top)
    over = _warped(face, here.inverse(), right - left, bottom - top)
    under = np.asarray(image.crop((left, top, right, bottom)), dtype=np.float32)
    weights = _weights(here, right - left, bottom - top) * np.float32(visibility)
    blended = (under + weights * (over - under)).round().clip(0, 255).astype(np.uint8)
    result = image.copy()
    result.paste(Image.fromarray(blended), (left, top))
    return result


def _region(to_square: Similarity) -> tuple[int, int, int, int]:
    """The part of the picture that the square comes from, with a margin: left, top, right, bottom."""
    corners = np.array([[0.0, 0.0], [SIDE - 1, 0], [0, SIDE - 1], [SIDE - 1, SIDE - 1]])
    places = to_square.inverse()(corners)
    left, top = (math.floor(least) - _MARGIN for least in places.min(axis=0))
    right, bottom = (math.ceil(most) + _MARGIN + 1 for most in places.max(axis=0))
    return left, top, right, bottom


def _from_corner(to_square: Similarity, left: int, top: int) -> Similarity:
    """`to_square` for the part of the picture that begins at (left, top)."""
    return Similarity(to_square.matrix, to_square(np.array([left, top], dtype=np.float64)))


def _mirrored(start: int, end: int, length: int) -> NDArray[np.intp]:
    """The places start…end - 1 of an axis, those beyond its ends mirrored back onto it."""
    places = np.arange(start, end) % (2 * length)
    return np.minimum(places, 2 * length - 1 - places)


def _weights(to_square: Similarity, width: int, height: int) -> Colours:
    """How much of the face each pixel of a region gets, (height, width, 1): all of it inside, none at the border."""
    columns, rows = np.meshgrid(np.arange(width, dtype=np.float64), np.arange(height, dtype=np.float64))
    places = to_square(np.stack((columns, rows), axis=-1))
    inwards = np.minimum(places, SIDE - 1 - places).min(axis=-1) / (_FEATHER * SIDE)
    share = inwards.clip(0, 1)
    return (share**2 * (3 - 2 * share)).astype(np.float32)[..., None]


def _warped(pixels: Colours, forward: Similarity, width: int, height: int) -> Colours:
    """`pixels` moved by `forward`, cut to width x height; black where there are none.

    Where they become smaller they are reduced by whole numbers first, for the bicubic filter sees 4 x 4 pixels only.
    """
    factor = max(1, math.floor(1 / forward.scale))
    back = forward.inverse()
    # Pillow counts from the pixels' corners: places of both pictures are half a pixel larger there.
    matrix, shift = back.matrix / factor, (back.shift - back.matrix @ (0.5, 0.5) + 0.5) / factor
    data = (*matrix[0], shift[0], *matrix[1], shift[1])
    made = [
        Image.fromarray(np.ascontiguousarray(pixels[..., channel]))
        .reduce(factor)
        .transform((width, height), Image.Transform.AFFINE, data, resample=Image.Resampling.BICUBIC)
        for channel in range(pixels.shape[2])
    ]
    return np.stack([np.asarray(channel) for channel in made], axis=-1)
