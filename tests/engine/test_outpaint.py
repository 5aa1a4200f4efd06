"""Outpainting: the picture stays where it was, and everything new is masked."""

import io

import numpy as np
import pytest
from PIL import Image

from webui.core.events import ImageReady
from webui.core.geometry import Size
from webui.core.requests import Inpaint, InpaintArea, Outpaint, grown_size, rounded_outpaint
from webui.engine import inpaint
from webui.engine.outpaint import grown, grown_mask

RNG = np.random.default_rng(8)
PICTURE = Image.fromarray(RNG.integers(0, 256, (56, 72, 3), dtype=np.uint8))


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def request(outpaint, picture=PICTURE, **values):
    size = grown_size(Size(*picture.size), outpaint)
    base = {
        "init_image": png(picture), "mask": b"", "outpaint": outpaint, "width": size.width, "height": size.height,
        "steps": 1, "seed": 4, "mask_blur": 2,
    }  # fmt: skip
    return Inpaint(**(base | values))


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize(
    "outpaint", [Outpaint(left=8), Outpaint(top=16, right=24), Outpaint(left=90, top=80, right=5, bottom=1)]
)
def test_the_picture_lies_in_its_border(mode, outpaint):
    picture = PICTURE.convert(mode)
    made = grown(picture, outpaint, 1)
    sides = rounded_outpaint(Size(*picture.size), outpaint)
    assert Size(*made.size) == grown_size(Size(*picture.size), outpaint)
    box = (sides.left, sides.top, sides.left + picture.width, sides.top + picture.height)
    assert made.crop(box).tobytes() == picture.tobytes()
    assert made.tobytes() == grown(picture, outpaint, 1).tobytes()
    assert made.tobytes() != grown(picture, outpaint, 2).tobytes()


def test_the_border_starts_as_the_mirror_image_and_ends_in_its_colours():
    dull = Image.fromarray(RNG.normal((60, 120, 200), 3, (40, 40, 3)).round().astype(np.uint8))
    border = np.asarray(grown(dull, Outpaint(right=400), 1), float)[:, 40:]
    inner = np.asarray(dull, float)[:, ::-1]
    assert np.abs(border[:, :2] - inner[:, :2]).mean() < 1
    np.testing.assert_allclose(border[:, -100:].mean((0, 1)), (60, 120, 200), atol=1)
    assert (border[:, 360:] == inner).all(-1).mean() < 0.1


def test_everything_new_is_masked_and_the_rest_as_before():
    before = Image.new("L", (72, 56), 0)
    before.paste(77, (30, 20, 40, 30))
    mask = np.asarray(grown_mask(before, Outpaint(left=16, bottom=8), (0, 0)))
    assert mask.shape == (64, 88)
    assert (mask[:, :16] == 255).all()
    assert (mask[56:] == 255).all()
    assert (mask[:, 16:24] == 255).all()  # at least a latent pixel deep
    assert (mask[48:56] == 255).all()
    inner = mask[:48, 24:]
    assert np.array_equal(inner, np.asarray(before)[:48, 8:])


@pytest.mark.parametrize("blur", [0, 4, 30])
@pytest.mark.parametrize("area", list(InpaintArea))
def test_the_blurred_mask_covers_the_border_whole_and_the_picture_stays(area, blur):
    outpaint = Outpaint(right=24, top=16)
    prepared = inpaint.prepare(request(outpaint, area=area, mask_blur=blur))
    made = prepared.paste(Image.new("RGB", prepared.image.size, (1, 2, 3)))
    size = grown_size(Size(72, 56), outpaint)
    assert made.size == (size.width, size.height) == (96, 72)
    assert (np.asarray(made)[:, 72:] == (1, 2, 3)).all()
    assert (np.asarray(made)[:16] == (1, 2, 3)).all()
    kept = np.asarray(prepared.blurred)[16:, :72] == 0
    assert kept.any() == (blur < 30)
    assert np.array_equal(np.asarray(made)[16:, :72][kept], np.asarray(PICTURE)[kept])


def test_only_masked_has_the_grown_size_whatever_is_worked_at(run):
    asked = request(Outpaint(left=16), area=InpaintArea.MASKED, width=64, height=64, mask_blur=2)
    made = next(event.image for event in run(asked) if isinstance(event, ImageReady))
    assert made.size == (88, 56)
    inside = np.asarray(made)[:, 16 + 8 + 6 :]
    assert np.array_equal(inside, np.asarray(PICTURE)[:, 8 + 6 :])
    assert (np.asarray(made)[:, :16] != np.asarray(grown(PICTURE, Outpaint(left=16), 4))[:, :16]).any()


def test_a_transparent_picture_gets_an_opaque_border():
    clear = PICTURE.copy()
    clear.putalpha(40)
    prepared = inpaint.prepare(request(Outpaint(bottom=16), clear))
    made = np.asarray(prepared.paste(Image.new("RGB", (72, 72), (1, 2, 3))))
    assert (made[56:] == (1, 2, 3, 255)).all()
    assert np.array_equal(made[:40], np.asarray(clear)[:40])
