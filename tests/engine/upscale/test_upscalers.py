"""Filters, and how often a network runs on the way to a size."""

import pytest
from PIL import Image

from webui.core.catalogue import BUILT_IN_UPSCALERS
from webui.core.geometry import Size
from webui.engine.upscale.upscalers import built_in, enlarge, pass_sizes


@pytest.mark.parametrize(
    ("scale", "size", "target", "starts"),
    [
        (4, Size(100, 50), Size(400, 200), [Size(100, 50)]),
        (4, Size(100, 50), Size(250, 125), [Size(100, 50)]),
        # Twice: the second pass begins where it ends at the target.
        (4, Size(100, 50), Size(800, 400), [Size(100, 50), Size(200, 100)]),
        (4, Size(10, 10), Size(51, 51), [Size(10, 10), Size(13, 13)]),
        (2, Size(10, 10), Size(50, 50), [Size(10, 10), Size(20, 20), Size(25, 25)]),
        # One side is reached before the other.
        (2, Size(10, 10), Size(20, 21), [Size(10, 10), Size(10, 11)]),
        # What stays as it is goes through once, what becomes smaller does not, and what keeps sizes always runs once.
        (4, Size(10, 10), Size(10, 10), [Size(10, 10)]),
        (4, Size(10, 10), Size(9, 10), []),
        (1, Size(10, 10), Size(40, 40), [Size(10, 10)]),
        (1, Size(10, 10), Size(5, 5), [Size(10, 10)]),
    ],
)
def test_where_the_passes_of_a_network_begin(scale, size, target, starts):
    assert pass_sizes(size, target, scale) == starts


def test_the_filters_are_pillows(smooth_picture):
    picture = smooth_picture(90, 70)
    for name, filter_ in (("Lanczos", Image.Resampling.LANCZOS), ("Nearest", Image.Resampling.NEAREST)):
        upscaler = built_in(name)
        assert upscaler is not None
        made = enlarge(picture, Size(180, 140), upscaler, say=pytest.fail)
        assert made.tobytes() == picture.resize((180, 140), filter_).tobytes()


def test_each_built_in_upscaler_is_a_filter_and_nothing_else_is():
    assert all(built_in(name) for name in BUILT_IN_UPSCALERS)
    assert built_in("4x-other") is None
