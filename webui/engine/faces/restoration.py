"""The recipe for restoring the faces of a picture: find them, bring each into a square, make it anew, paste it back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from webui.core.requests import FaceRestoration
from webui.engine.faces.alignment import TEMPLATE, Colours, extract, paste, similarity
from webui.engine.faces.detector import FaceDetector
from webui.engine.faces.network import FaceNetwork


@dataclass(frozen=True, slots=True)
class FaceRestorer:
    """`restore_faces`, ready for any picture."""

    network: FaceNetwork
    detector: FaceDetector
    options: FaceRestoration

    @property
    def kind(self) -> str:
        """The kind of its network."""
        return self.network.kind

    def __call__(self, image: Image.Image) -> tuple[Image.Image, int]:
        """As `restore_faces`."""
        return restore_faces(image, self.network, self.detector, self.options)


def restore_faces(
    image: Image.Image, network: FaceNetwork, detector: FaceDetector, options: FaceRestoration
) -> tuple[Image.Image, int]:
    """`image` (RGB) with its faces restored by `network`, and how many there are.

    Where there is none, `image` itself comes back; pixels away from faces never change. `options.model` was resolved
    to `network` by the caller.
    """
    faces = detector.detect(image)
    for face in faces:
        to_square = similarity(face.points, TEMPLATE)
        seen = _to_tensor(extract(image, to_square))
        made = _with_mean_of(network.restore(seen, options.weight), seen)
        image = paste(image, _to_colours(made), to_square, options.visibility)
    return image, len(faces)


def _with_mean_of(made: Tensor, seen: Tensor) -> Tensor:
    """`made` with the mean colour of `seen`: restorers tend to warm the skin, which shows beside an untouched neck."""
    return made + (seen - made).mean(dim=(2, 3), keepdim=True)


def _to_tensor(colours: Colours) -> Tensor:
    """(h, w, 3) in 0…255 → (1, 3, h, w) in 0…1."""
    return torch.from_numpy(colours).permute(2, 0, 1).unsqueeze(0).div(255).clamp(0, 1).contiguous()


def _to_colours(pixels: Tensor) -> Colours:
    return pixels[0].mul(255).permute(1, 2, 0).contiguous().numpy()
