"""What the vignette looks like. A second file, imported by `from .drawing import …`: extensions may have many."""

from __future__ import annotations

from PIL import Image


def vignette(image: Image.Image, *, strength: float, colour: str) -> Image.Image:
    """`image` (any mode, any size) as RGB, mixed with `colour` towards the corners; strength 0 changes nothing."""
    picture = image.convert("RGB")
    # Pillow's radial gradient is 0 at the centre and 255 in the corners.
    veil = Image.radial_gradient("L").resize(picture.size).point(lambda value: round(value * strength))
    return Image.composite(Image.new("RGB", picture.size, colour), picture, veil)
