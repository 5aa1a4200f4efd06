"""Hires fix's sizes and its second pass as a request."""

import dataclasses

import pytest

from webui.core.geometry import Size
from webui.core.hires import enlargement, largest_size, second_pass
from webui.core.requests import Extras, HiresFix, Img2Img, Txt2Img


def asked(width=512, height=768, **hires):
    return Txt2Img(width=width, height=height, hires=HiresFix(enabled=True, **hires))


@pytest.mark.parametrize(
    ("request_", "target"),
    [
        (asked(), Size(1024, 1536)),
        (asked(scale=1.0), Size(512, 768)),
        (asked(scale=1.1), Size(560, 840)),  # 563.2 and 844.8 are cut, not rounded
        (asked(640, 640, scale=1.15), Size(736, 736)),  # 735.9999999999999 to the machine
        (asked(768, 512, scale=4.0), Size(3072, 2048)),
        (dataclasses.replace(asked(), hires=HiresFix(width=800)), Size(800, 1200)),
        (dataclasses.replace(asked(), hires=HiresFix(height=1000)), Size(664, 1000)),
    ],
)
def test_by_scale_or_by_one_side(request_, target):
    assert enlargement(request_).target == enlargement(request_).cover == target
    assert enlargement(request_).offset == (0, 0)


@pytest.mark.parametrize(
    ("width", "height", "cover", "offset"),
    [
        (1024, 1536, Size(1024, 1536), (0, 0)),
        (1024, 1024, Size(1024, 1536), (0, 256)),
        (1536, 1536, Size(1536, 2304), (0, 384)),
        (512, 1536, Size(1024, 1536), (256, 0)),
        (1024, 1528, Size(1024, 1536), (0, 0)),  # of one odd latent row the last goes
        (1024, 1512, Size(1024, 1536), (0, 8)),
    ],
)
def test_another_shape_is_covered_then_cropped_about_the_middle(width, height, cover, offset):
    found = enlargement(dataclasses.replace(asked(), hires=HiresFix(width=width, height=height)))
    assert (found.cover, found.target, found.offset) == (cover, Size(width, height), offset)


def test_what_is_left_open_is_the_first_pass_s():
    first = Txt2Img(
        prompt="a",
        negative_prompt="b",
        checkpoint="one",
        sampler="Euler a",
        schedule_type="Karras",
        steps=30,
        width=512,
        height=512,
        cfg_scale=5.0,
        seed=3,
        extras=Extras(token_merging=0.2),
        hires=HiresFix(enabled=True),
    )
    assert second_pass(first) == dataclasses.replace(first, width=1024, height=1024, hires=HiresFix())
    told = HiresFix(
        enabled=True,
        prompt="c",
        negative_prompt="d",
        checkpoint="two",
        sampler="DDIM",
        schedule_type="Beta",
        steps=10,
        cfg_scale=3.0,
        token_merging=0.0,
    )
    second = second_pass(dataclasses.replace(first, hires=told))
    assert (second.prompt, second.negative_prompt, second.checkpoint) == ("c", "d", "two")
    assert (second.sampler, second.schedule_type, second.steps, second.cfg_scale) == ("DDIM", "Beta", 10, 3.0)
    assert second.extras == Extras()


def test_the_largest_size_is_what_memory_must_hold():
    assert largest_size(asked()) == Size(1024, 1536)
    assert largest_size(dataclasses.replace(asked(), hires=HiresFix())) == Size(512, 768)
    assert largest_size(Img2Img(init_image=b"", width=640)) == Size(640, 512)
