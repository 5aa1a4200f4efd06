"""Where faces are in a picture, by the cascade of MTCNN (Zhang et al. 2016, arXiv 1604.02878, section II).

Boxes are (left, top, right, bottom) in pixels, as float64 arrays (N, 4).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from webui.engine.faces.mtcnn import Mtcnn, load_mtcnn
from webui.engine.placement import weight_bytes

Array = NDArray[np.float64]

# How sure each network must be, and the step of the pyramid, which halves the area: the authors' own, but for the
# last, where they take 0.7. A face overlooked stays as it was; a face restored where there is none spoils the picture.
_SURE_PROPOSING, _SURE_REFINING, _SURE_PLACING = 0.6, 0.7, 0.95
_PYRAMID_STEP = math.sqrt(0.5)
_WINDOW, _STRIDE = 12, 2
_REFINED, _PLACED = 24, 48

# Smaller faces have too little to be restored by, and looking for them takes longest: each halving costs as much again
# as all larger sizes together.
_SMALLEST_FACE = 20
_SMALLEST_SHARE = 1 / 50
_AT_ONCE = 256  # crops a forward pass


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Face:
    """A face: its box, how sure the detector is, and five points (5, 2) as x and y: the eyes, the nose, the corners of
    the mouth; what is left in the picture comes first.
    """

    box: Array
    score: float
    points: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class FaceDetector:
    """The cascade on `device`."""

    networks: Mtcnn
    device: torch.device
    weight_bytes: int

    @torch.inference_mode()
    def detect(self, image: Image.Image) -> list[Face]:
        """The faces in an RGB picture, the surest first; none under 20 pixels or 1/50 of the shorter side."""
        smallest = max(_SMALLEST_FACE, min(image.size) * _SMALLEST_SHARE)
        if min(image.size) < smallest:
            return []
        array = np.array(image, dtype=np.float32)
        pixels = torch.from_numpy(array).permute(2, 0, 1).unsqueeze(0).sub_(127.5).div_(128).to(self.device)
        return self._place(pixels, self._refine(pixels, self._propose(pixels, smallest)))

    def _propose(self, pixels: Tensor, smallest: float) -> Array:
        """Boxes by the first network, at every size of a pyramid."""
        scores: list[Array] = [np.empty(0)]
        boxes: list[Array] = [np.empty((0, 4))]
        offsets: list[Array] = [np.empty((0, 4))]
        for small in _pyramid(pixels, smallest):
            likely, offset = (made.cpu().numpy().astype(np.float64) for made in self.networks.proposing(small))
            rows, columns = np.nonzero(likely >= _SURE_PROPOSING)
            ratio = np.array([pixels.shape[3] / small.shape[3], pixels.shape[2] / small.shape[2]])
            corners = np.stack((columns, rows), axis=1).astype(np.float64) * _STRIDE
            box = np.concatenate((corners * ratio, (corners + _WINDOW) * ratio), axis=1)
            kept = _without_overlaps(box, likely[rows, columns], 0.5)
            scores.append(likely[rows, columns][kept])
            boxes.append(box[kept])
            offsets.append(offset[:, rows, columns].T[kept])
        score, box, offset = (np.concatenate(each) for each in (scores, boxes, offsets))
        kept = _without_overlaps(box, score, 0.7)
        return _squares(_moved(box[kept], offset[kept]))

    def _refine(self, pixels: Tensor, boxes: Array) -> Array:
        """Those of `boxes` that the second network takes for faces, moved as it says."""
        scores, offsets = self._look(self.networks.refining, pixels, boxes, _REFINED, 2)
        sure = scores > _SURE_REFINING
        boxes, scores, offsets = boxes[sure], scores[sure], offsets[sure]
        kept = _without_overlaps(boxes, scores, 0.7)
        return _squares(_moved(boxes[kept], offsets[kept]))

    def _place(self, pixels: Tensor, boxes: Array) -> list[Face]:
        """The faces that the third network confirms in `boxes`."""
        scores, offsets, points = self._look(self.networks.placing, pixels, boxes, _PLACED, 3)
        sure = scores > _SURE_PLACING
        boxes, scores, offsets, points = boxes[sure], scores[sure], offsets[sure], points[sure]
        corner, size = boxes[:, None, :2], boxes[:, None, 2:] - boxes[:, None, :2]
        places = corner + size * points.reshape(-1, 2, 5).transpose(0, 2, 1)
        boxes = _moved(boxes, offsets)
        kept = _without_overlaps(boxes, scores, 0.7, of_smaller=True)
        return [Face(box=boxes[index], score=float(scores[index]), points=places[index]) for index in kept]

    def _look(self, network: torch.nn.Module, pixels: Tensor, boxes: Array, side: int, answers: int) -> list[Array]:
        """What `network` says of the square `boxes`, each seen at `side` pixels."""
        if len(boxes) == 0:
            return [np.empty(0), np.empty((0, 4)), np.empty((0, 10))][:answers]
        made: list[list[Tensor]] = []
        for start in range(0, len(boxes), _AT_ONCE):
            crops = torch.cat([_crop(pixels, box, side) for box in boxes[start : start + _AT_ONCE]])
            made.append(network(crops))
        return [torch.cat(each).cpu().numpy().astype(np.float64) for each in zip(*made, strict=True)]


def load_face_detector(device: torch.device) -> FaceDetector:
    """The detector on `device`; its weights come with Atelier."""
    networks = load_mtcnn().to(device)
    return FaceDetector(networks=networks, device=device, weight_bytes=weight_bytes(networks))


def _pyramid(pixels: Tensor, smallest: float) -> Iterator[Tensor]:
    """The picture at the sizes at which faces from `smallest` pixels on fill a window."""
    height, width = pixels.shape[2:]
    scale = _WINDOW / smallest
    while min(height, width) * scale >= _WINDOW:
        yield _resized(pixels, math.ceil(height * scale), math.ceil(width * scale))
        scale *= _PYRAMID_STEP


def _crop(pixels: Tensor, box: Array, side: int) -> Tensor:
    """The square `box` of the picture at `side` pixels, black where it goes beyond the border."""
    left, top, right, bottom = (int(value) for value in box.round())
    right, bottom = max(right, left + 1), max(bottom, top + 1)
    height, width = pixels.shape[2:]
    inside = pixels[:, :, max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
    beyond = (max(-left, 0), max(right - max(width, left), 0), max(-top, 0), max(bottom - max(height, top), 0))
    return _resized(F.pad(inside, beyond, value=-127.5 / 128), side, side)


def _resized(pixels: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(pixels, (height, width), mode="bilinear", align_corners=False, antialias=True)


def _moved(boxes: Array, offsets: Array) -> Array:
    """`boxes` moved by `offsets`, which are shares of their widths and heights (equation 2)."""
    size = boxes[:, 2:] - boxes[:, :2]
    return boxes + offsets * np.concatenate((size, size), axis=1)


def _squares(boxes: Array) -> Array:
    """Squares about the same centres, as wide as the boxes' longer sides."""
    centre, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]).max(axis=1, keepdims=True) / 2
    return np.concatenate((centre - half, centre + half), axis=1)


def _without_overlaps(boxes: Array, scores: Array, most: float, *, of_smaller: bool = False) -> list[int]:
    """Which boxes to keep, the surest first: those that no surer one overlaps by more than `most`.

    Overlap is the intersection's share of the union, or of the smaller of the two (non-maximum suppression).
    """
    area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    left = np.argsort(-scores, kind="stable")
    kept: list[int] = []
    while len(left) > 0:
        first, left = left[0], left[1:]
        kept.append(int(first))
        sides = np.minimum(boxes[first, 2:], boxes[left, 2:]) - np.maximum(boxes[first, :2], boxes[left, :2])
        common = sides.clip(min=0).prod(axis=1)
        whole = np.minimum(area[first], area[left]) if of_smaller else area[first] + area[left] - common
        left = left[common <= most * whole]
    return kept
