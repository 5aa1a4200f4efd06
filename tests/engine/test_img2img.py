"""How far a picture goes back into the noise, and how it is fitted into another size."""

import numpy as np
import pytest
from PIL import Image

from webui.core.geometry import Size
from webui.core.requests import Img2Img, Inpaint, ResizeMode, StartOptions, Txt2Img
from webui.engine.img2img import Walk, fit, walk, walk_of


def noise_picture(width, height):
    rng = np.random.default_rng(width * 1000 + height)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


PICTURE = noise_picture(96, 80)


@pytest.mark.parametrize(
    ("steps", "strength", "first"),
    [(20, 0.0, 20), (20, 0.75, 4), (20, 1.0, 0), (20, 0.01, 19), (1, 0.5, 0), (50, 0.5, 24)],
)
def test_strength_leaves_steps_out(steps, strength, first):
    assert walk(steps, strength) == Walk(steps, first)


@pytest.mark.parametrize(
    ("steps", "strength", "longer"),
    [(20, 0.75, 26), (20, 1.0, 20), (20, 0.5, 40), (20, 0.01, 2000), (1, 0.5, 2), (150, 1.0, 150)],
)
def test_exact_steps_make_the_schedule_longer(steps, strength, longer):
    assert walk(steps, strength, exact=True) == Walk(longer, longer - steps)


@pytest.mark.parametrize("exact", [False, True])
def test_more_strength_starts_earlier(exact):
    for steps in (1, 7, 20, 150):
        walks = [walk(steps, strength / 100, exact=exact) for strength in range(101)]
        starts = [found.first / found.steps for found in walks]
        assert starts == sorted(starts, reverse=True)
        assert starts[0] == 1
        assert starts[-1] == 0
        assert not exact or all(found.steps - found.first == steps for found in walks[1:])


def test_words_alone_walk_it_all_and_pictures_as_they_say():
    values = {"steps": 10, "denoising_strength": 0.5}
    exact = StartOptions(exact_steps=True)
    assert walk_of(Txt2Img(steps=10)) == Walk(10, 0)
    assert walk_of(Img2Img(init_image=b"", **values)) == Walk(10, 4)
    assert walk_of(Inpaint(init_image=b"", mask=b"", start=exact, **values)) == Walk(20, 10)


@pytest.mark.parametrize("size", [Size(64, 64), Size(40, 128), Size(128, 40), Size(96, 80)])
@pytest.mark.parametrize("mode", list(ResizeMode))
def test_a_fitted_picture_has_the_size_asked_for(mode, size):
    assert fit(PICTURE, size, mode).size == (size.width, size.height)


def test_resize_modes_do_what_they_say():
    # Left half red, right half blue, 64x32.
    picture = Image.new("RGB", (64, 32), "red")
    picture.paste("blue", (32, 0, 64, 32))
    stretched, cropped, filled, latent = (fit(picture, Size(32, 32), mode) for mode in ResizeMode)
    assert stretched.getpixel((4, 16)) == (255, 0, 0)
    assert stretched.getpixel((28, 16)) == (0, 0, 255)
    assert latent.tobytes() == stretched.tobytes()
    assert cropped.tobytes() == picture.crop((16, 0, 48, 32)).tobytes()
    assert filled.getpixel((2, 0)) == filled.getpixel((2, 31)) == (255, 0, 0)
    assert filled.getpixel((29, 31)) == (0, 0, 255)
