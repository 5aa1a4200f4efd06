"""Pictures to save and to read."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def picture() -> Image.Image:
    """A 48x32 picture with every pixel different from its neighbours, so that turning it shows."""
    return Image.fromarray(np.random.default_rng(7).integers(0, 256, (32, 48, 3), dtype=np.uint8))


@pytest.fixture
def encoded():
    """A function that encodes a picture: `encoded(image, "JPEG", quality=90)`."""

    def encode(image: Image.Image, file_format: str, **options: object) -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, file_format, **options)
        return buffer.getvalue()

    return encode
