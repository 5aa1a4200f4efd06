"""Inpainting: what stays, what is remade, and where the work goes."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter

from webui.core.errors import InvalidRequest, UnreadableImage
from webui.core.events import ImageReady
from webui.core.geometry import Box, Size
from webui.core.requests import Inpaint, InpaintArea, MaskedContent, ResizeMode, SoftInpainting, StartOptions
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


def random_mask(rng, size):
    """Rectangles and ellipses of random greys on black."""
    mask = Image.new("L", size, 0)
    for _ in range(rng.integers(1, 4)):
        left, top = rng.integers(0, size[0] - 4), rng.integers(0, size[1] - 4)
        box = (left, top, left + rng.integers(2, size[0] // 2), top + rng.integers(2, size[1] // 2))
        draw = ImageDraw.Draw(mask)
        (draw.ellipse if rng.random() < 0.5 else draw.rectangle)(tuple(map(int, box)), fill=int(rng.integers(1, 256)))
    return mask


@pytest.mark.parametrize("case", range(60))
def test_pixels_outside_the_blurred_mask_are_the_inputs_byte_for_byte(case):
    rng = np.random.default_rng(case)
    size = tuple(int(side) for side in rng.integers(24, 160, 2))
    before = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3 if case % 3 else 4), dtype=np.uint8))
    mask = random_mask(rng, size)
    blur = tuple(int(side) for side in rng.integers(0, 9, 2))
    asked = Size(*(int(side) * 8 for side in rng.integers(8, 20, 2)))
    area, mode = list(InpaintArea)[case % 2], list(ResizeMode)[case % 4]
    prepared = inpaint.prepare(
        request(
            init_image=png(before),
            mask=png(mask),
            mask_blur=blur[0],
            mask_blur_y=blur[1],
            area=area,
            resize_mode=mode,
            width=asked.width,
            height=asked.height,
            padding=int(rng.integers(0, 40)),
        )
    )
    assert prepared.image.size == prepared.mask.size == (asked.width, asked.height)

    if area is InpaintArea.WHOLE:
        before, mask = fit(before, asked, mode), mask.filter(ImageFilter.GaussianBlur(blur))
        mask = fit(mask, asked, mode, Image.Resampling.BILINEAR)
    else:
        mask = mask.filter(ImageFilter.GaussianBlur(blur))
    outside = np.asarray(mask) == 0
    made = noise_picture(asked.width, asked.height)
    changed = Image.fromarray(rng.integers(0, 256, (asked.height // 8, asked.width // 8), dtype=np.uint8))
    for share in (None, changed, Image.new("L", changed.size, 255)):
        after = prepared.paste(made, share)
        assert after.mode == before.mode
        assert after.size == before.size
        assert np.array_equal(np.asarray(after)[outside], np.asarray(before)[outside])
    inside = np.asarray(mask) == 255
    if area is InpaintArea.WHOLE:
        assert np.array_equal(np.asarray(prepared.paste(made))[inside][:, :3], np.asarray(made)[inside])
    assert (np.asarray(prepared.paste(made))[inside][:, 3:] == 255).all()


def test_half_masked_pixels_of_a_clear_picture_show_what_was_made_and_nothing_hidden():
    clear = Image.new("RGBA", (96, 80), (0, 255, 0, 0))
    prepared = inpaint.prepare(
        request(init_image=png(clear), mask=png(MASK.point([0] * 255 + [128])), width=96, height=80, mask_blur=0)
    )
    after = prepared.paste(Image.new("RGB", (96, 80), (200, 100, 50)))
    assert after.getpixel((60, 30)) == (200, 100, 50, 128)
    assert after.getpixel((2, 2)) == (0, 255, 0, 0)


def test_transparency_survives_and_an_opaque_picture_gets_none(run):
    alpha = Image.linear_gradient("L").resize(PICTURE.size)
    clear = PICTURE.copy()
    clear.putalpha(alpha)
    made = picture(run, init_image=png(clear), width=96, height=80, steps=1)
    outside = np.asarray(MASK.filter(ImageFilter.GaussianBlur(4))) == 0
    assert made.mode == "RGBA"
    assert np.array_equal(np.asarray(made)[outside], np.asarray(clear)[outside])
    assert inpaint.prepare(request(init_image=png(PICTURE.convert("RGBA")))).original.mode == "RGB"


def test_what_shows_through_a_clear_picture_is_the_background():
    clear = Image.new("RGBA", (96, 80), (9, 9, 9, 0))
    start = StartOptions(background="#ff8000")
    prepared = inpaint.prepare(request(init_image=png(clear), start=start))
    assert prepared.image.getpixel((5, 5)) == (255, 128, 0)


def test_the_mask_is_blurred_by_its_own_measure_each_way():
    def reach(x, y):
        return inpaint.prepare(request(mask_blur=x, mask_blur_y=y)).source_mask.getbbox()

    assert reach(0, 0) == (50, 20, 70, 40)
    wide, tall, both = reach(4, 0), reach(0, 4), reach(4, None)
    assert wide[0] < 45
    assert (wide[1], wide[3]) == (20, 40)
    assert tall[1] < 15
    assert (tall[0], tall[2]) == (50, 70)
    assert both == (wide[0], tall[1], wide[2], tall[3])


@pytest.mark.parametrize("area", list(InpaintArea))
def test_soft_inpainting_keeps_every_pixel_outside_and_changes_the_rest(run, area):
    made = picture(run, area=area, soft=SoftInpainting(enabled=True), mask_blur=3, width=96, height=80)
    mask = np.asarray(MASK.filter(ImageFilter.GaussianBlur(3)))
    changed = (np.asarray(PICTURE) != np.asarray(made)).any(-1)
    assert not changed[mask == 0].any()
    assert changed[mask > 250].mean() > 0.9


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
