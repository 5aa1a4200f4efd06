"""Inpainting: what stays, what is remade, and where the work goes."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from webui.core.errors import InvalidRequest, UnreadableImage
from webui.core.events import ImageReady
from webui.core.geometry import Box, Size
from webui.core.requests import Inpaint, InpaintArea, MaskedContent, ResizeMode
from webui.engine import inpaint
from webui.engine.img2img import fit


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def noise_picture(width, height):
    rng = np.random.default_rng(width * 1000 + height)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def mask_of(size, box):
    mask = Image.new("L", size, 0)
    ImageDraw.Draw(mask).rectangle(box, fill=255)
    return mask


PICTURE = noise_picture(96, 80)
MASK = mask_of((96, 80), (50, 20, 69, 39))


def request(**values):
    base = {
        "prompt": "a circle", "steps": 3, "width": 64, "height": 64, "seed": 3, "denoising_strength": 1.0,
        "init_image": png(PICTURE), "mask": png(MASK), "mask_blur": 4, "padding": 8,
    }  # fmt: skip
    return Inpaint(**(base | values))


def picture(run, **values):
    return next(event.image for event in run(request(**values)) if isinstance(event, ImageReady))


@pytest.mark.parametrize("content", list(MaskedContent))
def test_only_masked_keeps_size_and_every_pixel_outside(run, content):
    made = picture(run, area=InpaintArea.MASKED, masked_content=content)
    assert made.size == PICTURE.size
    before, after = np.asarray(PICTURE), np.asarray(made)
    changed = (before != after).any(-1)
    # Pillow's blur of deviation 4 reaches 12 px.
    reach = np.zeros((80, 96), bool)
    reach[20 - 12 : 40 + 12, 50 - 12 : 70 + 12] = True
    assert not changed[~reach].any()
    assert changed[22:38, 52:68].mean() > 0.9


@pytest.mark.parametrize("mode", list(ResizeMode))
def test_the_whole_picture_is_the_resized_one_outside_the_mask(run, mode):
    made = picture(run, area=InpaintArea.WHOLE, resize_mode=mode, mask_blur=0)
    resized = fit(PICTURE, Size(64, 64), mode)
    mask = np.asarray(fit(MASK, Size(64, 64), mode, Image.Resampling.BILINEAR))
    changed = (np.asarray(resized) != np.asarray(made)).any(-1)
    assert made.size == (64, 64)
    assert not changed[mask == 0].any()
    assert changed[mask == 255].mean() > 0.9


def test_an_inverted_mask_changes_the_rest(run):
    made = np.asarray(picture(run, area=InpaintArea.MASKED, mask_inverted=True, mask_blur=0))
    changed = (np.asarray(PICTURE) != made).any(-1)
    assert not changed[20:40, 50:70].any()
    assert changed[:20].mean() > 0.9


def test_every_content_starts_differently(run):
    results = {picture(run, masked_content=content, denoising_strength=0.3).tobytes() for content in MaskedContent}
    assert len(results) == len(MaskedContent)


def test_strength_zero_shows_the_picture_through_the_vae_under_the_mask_only(run):
    made = picture(run, denoising_strength=0.0, width=96, height=80, mask_blur=0)
    changed = (np.asarray(PICTURE) != np.asarray(made)).any(-1)
    assert not changed[np.asarray(MASK) == 0].any()
    assert changed[np.asarray(MASK) == 255].any()


@pytest.mark.parametrize(
    ("values", "error", "words"),
    [
        ({"mask": png(Image.new("L", (96, 80), 0))}, InvalidRequest, "no white"),
        ({"mask": png(Image.new("L", (96, 80), 255)), "mask_inverted": True}, InvalidRequest, "no black"),
        ({"mask": png(Image.new("L", (9, 8), 255))}, InvalidRequest, "9x8"),
        ({"mask": b"not a picture"}, UnreadableImage, "mask"),
        ({"init_image": png(PICTURE)[:500]}, UnreadableImage, "picture to inpaint"),
    ],
)
def test_what_cannot_be_used_is_named(values, error, words):
    with pytest.raises(error, match=words):
        inpaint.prepare(request(**values))


def test_a_transparent_mask_is_where_it_was_painted():
    mask = Image.new("RGBA", (96, 80), (0, 0, 0, 0))
    ImageDraw.Draw(mask).rectangle((50, 20, 69, 39), fill=(255, 255, 255, 255))
    prepared = inpaint.prepare(request(mask=png(mask), mask_blur=0))
    assert prepared.blurred.size == (64, 64)
    assert inpaint.prepare(request(mask_blur=0)).blurred.tobytes() == prepared.blurred.tobytes()


@pytest.mark.parametrize("target", [Size(64, 64), Size(128, 64), Size(64, 128)])
@pytest.mark.parametrize("reach", [Box(0, 0, 4, 4), Box(50, 20, 70, 40), Box(90, 2, 96, 80), Box(0, 0, 96, 80)])
def test_the_crop_holds_the_mask_and_its_padding_inside_the_picture(reach, target):
    box = inpaint._crop_box(reach, Size(96, 80), target, 8)
    assert 0 <= box.left <= max(0, reach.left - 8)
    assert 0 <= box.top <= max(0, reach.top - 8)
    assert 96 >= box.right >= min(96, reach.right + 8)
    assert 80 >= box.bottom >= min(80, reach.bottom + 8)
    if box.size.width < 96 and box.size.height < 80:
        assert box.size.width / box.size.height == pytest.approx(target.width / target.height, rel=0.1)


def test_filling_continues_the_colours_around():
    picture = Image.new("RGB", (64, 64), (200, 40, 10))
    ImageDraw.Draw(picture).rectangle((20, 20, 43, 43), fill=(0, 0, 255))
    mask = mask_of((64, 64), (20, 20, 43, 43))
    pixels = torch.from_numpy(np.array(picture, np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
    filled = inpaint.filled(pixels, mask)
    wanted = torch.tensor([200, 40, 10]).view(1, 3, 1, 1) / 127.5 - 1
    torch.testing.assert_close(filled, wanted.expand_as(filled), atol=1e-4, rtol=0)
    assert torch.isfinite(inpaint.filled(pixels, Image.new("L", (64, 64), 255))).all()


def test_a_latent_pixel_is_remade_when_the_mask_touches_it():
    mask = mask_of((32, 16), (8, 0, 8, 0))
    assert inpaint.latent_mask(mask).tolist() == [[[[0, 1, 0, 0], [0, 0, 0, 0]]]]
