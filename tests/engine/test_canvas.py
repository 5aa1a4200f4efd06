"""What a walk starts from, and what is done with the picture after it."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from webui.core.errors import UnreadableImage
from webui.core.events import ImageReady, Started
from webui.core.geometry import Size
from webui.core.requests import (
    Img2Img,
    Inpaint,
    InpaintArea,
    MaskedContent,
    ResizeMode,
    SoftInpainting,
    StartOptions,
    Txt2Img,
)
from webui.engine.canvas import Canvas, make_canvas
from webui.engine.colours import ColourCorrection
from webui.engine.img2img import fit
from webui.engine.latent_resize import enlarge_latents
from webui.engine.pixels import encode, to_pixels
from webui.engine.soft_inpaint import SoftlyMaskedDenoiser

CPU = torch.device("cpu")
PICTURE = Image.fromarray(np.random.default_rng(3).integers(0, 256, (50, 75, 3), dtype=np.uint8))
MASK = Image.new("L", (75, 50), 0)
ImageDraw.Draw(MASK).rectangle((20, 10, 40, 30), fill=255)


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def img2img(**values):
    return Img2Img(**({"init_image": png(PICTURE), "width": 64, "height": 64, "steps": 2, "seed": 1} | values))


def inpainting(**values):
    base = {"init_image": png(PICTURE), "mask": png(MASK), "width": 64, "height": 64, "steps": 2, "seed": 1}
    return Inpaint(**(base | values))


@pytest.fixture
def canvas(tiny):
    def canvas(request):
        with torch.inference_mode():
            return make_canvas(request, tiny, CPU)

    return canvas


@torch.inference_mode()
def latents(tiny, image):
    return encode(tiny.vae, to_pixels(image), tiny.scaling_factor)


def pictures(events):
    return [event.image for event in events if isinstance(event, ImageReady)]


def test_words_start_from_noise_alone(canvas):
    start = canvas(Txt2Img(width=64, height=64))
    assert start.latents is start.mask is start.beside is None
    with pytest.raises(ValueError, match="without a picture"):
        start.under_noise(torch.zeros(1, 4, 8, 8), 1.0)


def test_extra_noise_comes_on_top_of_the_schedules():
    noise = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    start = Canvas(latents=torch.ones(1, 4, 3, 3), extra_noise=0.25)
    torch.testing.assert_close(start.under_noise(noise, 2.0), 1 + 2.25 * noise)
    # What is not denoised gets none, for nothing would take it away.
    assert start.under_noise(noise, 0.0).eq(1).all()


@pytest.mark.parametrize("mode", [ResizeMode.STRETCH, ResizeMode.CROP, ResizeMode.FILL])
def test_a_picture_is_fitted_and_then_encoded(canvas, tiny, mode):
    got = canvas(img2img(resize_mode=mode)).latents
    torch.testing.assert_close(got, latents(tiny, fit(PICTURE, Size(64, 64), mode)))


@pytest.mark.parametrize("size", [Size(64, 64), Size(128, 96)])
def test_or_encoded_and_then_enlarged(canvas, tiny, size):
    got = canvas(img2img(resize_mode=ResizeMode.LATENT, width=size.width, height=size.height)).latents
    own = latents(tiny, PICTURE.resize((72, 48), Image.Resampling.LANCZOS))
    torch.testing.assert_close(got, enlarge_latents(own, (size.height // 8, size.width // 8)))


@pytest.mark.parametrize("area", list(InpaintArea))
@pytest.mark.parametrize("content", list(MaskedContent))
def test_a_masked_picture_too(canvas, area, content):
    start = canvas(inpainting(resize_mode=ResizeMode.LATENT, area=area, masked_content=content, width=96))
    assert start.latents.shape == (1, 4, 8, 12)
    assert start.mask.shape == (1, 1, 8, 12)


def test_what_is_transparent_shows_the_background(canvas, tiny):
    clear = Image.new("RGBA", (64, 64), (1, 2, 3, 0))
    got = canvas(img2img(init_image=png(clear), start=StartOptions(background="#102030"))).latents
    torch.testing.assert_close(got, latents(tiny, Image.new("RGB", (64, 64), "#102030")))


def test_a_picture_lying_on_its_side_is_put_upright(canvas, tiny):
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    PICTURE.transpose(Image.Transpose.ROTATE_90).save(buffer, "PNG", exif=exif)
    got = canvas(img2img(init_image=buffer.getvalue())).latents
    torch.testing.assert_close(got, latents(tiny, fit(PICTURE, Size(64, 64), ResizeMode.STRETCH)))


def test_what_is_no_picture_is_said(canvas):
    with pytest.raises(UnreadableImage, match=r"^The picture to start from is not a picture"):
        canvas(img2img(init_image=b"GIF?"))


def test_colours_are_corrected_to_those_of_the_start(canvas):
    made = Image.effect_noise((64, 64), 60).convert("RGB")
    plain = canvas(img2img())
    corrected = canvas(img2img(start=StartOptions(colour_correction=True)))
    assert plain.finish(made, plain.latents[0]).tobytes() == made.tobytes()
    wanted = ColourCorrection(fit(PICTURE, Size(64, 64), ResizeMode.STRETCH))(made)
    assert corrected.finish(made, corrected.latents[0]).tobytes() == wanted.tobytes()


def test_correction_stays_within_the_mask(canvas):
    request = inpainting(start=StartOptions(colour_correction=True), width=80, height=48, mask_blur=0)
    start = canvas(request)
    finished = np.asarray(start.finish(Image.new("RGB", (80, 48), "red"), start.latents[0]))
    before = np.asarray(fit(PICTURE, Size(80, 48), ResizeMode.STRETCH))
    outside = np.asarray(fit(MASK, Size(80, 48), ResizeMode.STRETCH, Image.Resampling.BILINEAR)) == 0
    assert np.array_equal(finished[outside], before[outside])
    assert (finished[~outside] != before[~outside]).any()


def test_a_soft_mask_has_greys_and_blends_softly(canvas):
    hard, soft = (canvas(inpainting(soft=SoftInpainting(enabled=enabled), mask_blur=6)) for enabled in (False, True))
    assert set(hard.mask.unique().tolist()) <= {0.0, 1.0}
    assert ((soft.mask > 0) & (soft.mask < 1)).any()
    assert isinstance(soft.masked(lambda x, sigma: x), SoftlyMaskedDenoiser)
    assert not isinstance(hard.masked(lambda x, sigma: x), SoftlyMaskedDenoiser)


def test_what_did_not_change_in_the_latents_keeps_its_pixels(canvas):
    start = canvas(inpainting(soft=SoftInpainting(enabled=True), width=80, height=48, mask_blur=2))
    before = fit(PICTURE, Size(80, 48), ResizeMode.STRETCH)
    made = Image.new("RGB", (80, 48), "red")
    assert start.finish(made, start.latents[0]).tobytes() == before.tobytes()
    assert start.finish(made, start.latents[0] + 5).getpixel((30, 20)) == (255, 0, 0)


def test_exact_steps_walk_what_was_asked_for(run):
    def steps(**values):
        return next(event.total_steps for event in run(img2img(steps=3, **values)) if isinstance(event, Started))

    assert steps(denoising_strength=0.3) == 1
    assert steps(denoising_strength=0.3, start=StartOptions(exact_steps=True)) == 3
    assert steps(denoising_strength=0.0, start=StartOptions(exact_steps=True)) == 0


def test_extra_noise_and_correction_change_the_picture(run):
    plain, noisy, corrected = (
        pictures(run(img2img(steps=2, denoising_strength=0.5, start=start)))[0].tobytes()
        for start in (StartOptions(), StartOptions(extra_noise=0.5), StartOptions(colour_correction=True))
    )
    assert len({plain, noisy, corrected}) == 3
