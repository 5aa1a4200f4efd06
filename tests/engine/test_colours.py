"""Colour correction, against Pillow's own Lab and against what it promises."""

import numpy as np
import pytest
from PIL import Image, ImageCms

from webui.engine.colours import ColourCorrection, from_lab, to_lab

RNG = np.random.default_rng(5)


def noise(width, height, low=0, high=256):
    return Image.fromarray(RNG.integers(low, high, (height, width, 3), dtype=np.uint8))


def luma(image):
    return np.asarray(image, dtype=float) @ (0.3, 0.59, 0.11)


def means(image):
    return np.asarray(image, dtype=float).mean((0, 1))


# CIE L*a*b* of sRGB's corners under D65, as colour science gives them.
@pytest.mark.parametrize(
    ("rgb", "lab"),
    [
        ((1, 1, 1), (100, 0, 0)),
        ((0, 0, 0), (0, 0, 0)),
        ((1, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 1, 0), (87.74, -86.18, 83.18)),
        ((0, 0, 1), (32.30, 79.19, -107.86)),
    ],
)
def test_lab_is_that_of_colour_science(rgb, lab):
    np.testing.assert_allclose(to_lab(np.array([rgb], np.float32))[0], lab, atol=0.05)


def test_lab_goes_there_and_back():
    colours = RNG.random((200, 3), dtype=np.float32)
    np.testing.assert_allclose(from_lab(to_lab(colours)), colours, atol=2e-4)


def test_lightness_is_pillows():
    # Pillow's Lab is that of print (D50); lightness does not depend on the white, but for its adaptation.
    picture = noise(32, 32)
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    theirs = ImageCms.applyTransform(picture, ImageCms.buildTransform(srgb, lab, "RGB", "LAB"))
    ours = to_lab(np.asarray(picture, np.float32) / 255)[..., 0]
    assert np.abs(ours - np.asarray(theirs)[..., 0] / 2.55).max() < 4


def test_the_same_colours_stay():
    picture = noise(60, 300)
    made = ColourCorrection(picture)(picture)
    # Histograms are counted over 256 levels of Lab, of which blue and dark colours have few.
    difference = np.abs(np.asarray(made, int) - np.asarray(picture, int))
    assert difference.mean() < 1.5


def test_hues_are_taken_and_light_is_kept():
    reddish = Image.merge("RGB", [channel.point(lambda v, s=s: int(v * s)) for channel, s in
                                  zip(noise(64, 64, 60, 200).split(), (1.2, 0.9, 0.9), strict=True)])  # fmt: skip
    bluish = Image.merge("RGB", [channel.point(lambda v, s=s: int(v * s)) for channel, s in
                                 zip(noise(50, 40, 60, 200).split(), (0.9, 0.9, 1.2), strict=True)])  # fmt: skip
    made = ColourCorrection(reddish)(bluish)
    assert made.size == bluish.size
    assert np.abs(luma(made) - luma(bluish)).max() <= 1.5
    cast = means(made) - means(made).mean()
    np.testing.assert_allclose(cast, means(reddish) - means(reddish).mean(), atol=6)


@pytest.mark.parametrize("colour", ["black", "white", "red", (1, 2, 3)])
def test_a_picture_of_one_colour_is_no_trouble(colour):
    flat = Image.new("RGB", (9, 130), colour)
    assert ColourCorrection(flat)(noise(20, 20)).size == (20, 20)
    corrected = ColourCorrection(noise(20, 20))(flat)
    assert np.abs(luma(corrected) - luma(flat)).max() <= 1.5
