"""Sizes and boxes."""

from __future__ import annotations

from webui.core.geometry import Box, Size
from webui.core.requests import Txt2Img


def test_sizes():
    size = Size(640, 480)
    assert str(size) == "640x480"
    assert size.area == 307_200
    assert size.scaled(1.5) == Size(960, 720)
    assert Size(3, 1).scaled(0.1) == Size(1, 1)
    assert Txt2Img(width=640, height=480).size == size


def test_boxes_hold_the_pixels_between_their_corners():
    box = Box(10, 20, 110, 70)
    assert box.size == Size(100, 50)
    assert box.corners == (10, 20, 110, 70)


def test_a_request_counts_its_pictures():
    assert Txt2Img(batch_size=3, batch_count=4).total_images == 12
