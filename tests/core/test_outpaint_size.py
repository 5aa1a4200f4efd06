"""How large a picture becomes when it grows."""

import pytest

from webui.core.geometry import Size
from webui.core.requests import Outpaint, grown_size, rounded_outpaint


def test_a_picture_of_whole_eighths_grows_by_just_what_is_asked():
    outpaint = Outpaint(left=8, top=64, right=16)
    assert rounded_outpaint(Size(512, 768), outpaint) == outpaint
    assert grown_size(Size(512, 768), outpaint) == Size(536, 832)


@pytest.mark.parametrize(
    ("outpaint", "rounded"),
    [
        (Outpaint(left=10), Outpaint(left=14, bottom=4)),
        (Outpaint(right=10), Outpaint(right=14, bottom=4)),
        (Outpaint(left=10, right=10), Outpaint(left=10, right=12, bottom=4)),
        (Outpaint(top=3), Outpaint(top=4)),
        (Outpaint(bottom=1), Outpaint(bottom=4)),
    ],
)
def test_what_is_missing_is_added_to_a_side_that_grows(outpaint, rounded):
    picture = Size(514 if rounded.left or rounded.right else 512, 700)
    assert rounded_outpaint(picture, outpaint) == rounded


def test_every_size_is_one_that_can_be_made():
    for width in range(500, 520, 3):
        for side in range(0, 20, 3):
            size = grown_size(Size(width, 300 + width), Outpaint(left=side, bottom=2 * side))
            assert size.width % 8 == size.height % 8 == 0
            assert 0 <= size.width - width - side < 8
