"""What goes beside the latents, against the arithmetic of the models' authors, and through the whole recipe."""

import dataclasses
import io

import numpy as np
import pytest
import torch
from PIL import Image

from webui.core.errors import UserError
from webui.core.events import ImageReady
from webui.core.geometry import Size
from webui.core.ports import Control
from webui.core.requests import Img2Img, Inpaint, Txt2Img
from webui.engine.unet_input import beside_latents

SIZE = Size(64, 32)
TASK = {"prompt": "a red circle", "steps": 2, "width": 64, "height": 64, "seed": 1}


def with_input(tiny, kind):
    return dataclasses.replace(tiny, input=kind)


@pytest.fixture
def pixels():
    return torch.rand(1, 3, 32, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1


def latents(tiny, picture):
    with torch.no_grad():
        return tiny.vae.encode(picture).latent_dist.mean


@torch.no_grad()
def test_a_plain_model_takes_nothing(tiny, pixels):
    assert beside_latents(tiny, SIZE, pixels=pixels) is None


@torch.no_grad()
def test_an_edit_model_takes_the_pictures_unscaled_latents(tiny, pixels):
    got = beside_latents(with_input(tiny, "edit"), SIZE, pixels=pixels)

    torch.testing.assert_close(got, latents(tiny, pixels))
    assert torch.equal(beside_latents(with_input(tiny, "edit"), SIZE), torch.zeros(1, 4, 4, 8))


@torch.no_grad()
def test_an_inpainting_model_takes_the_mask_and_what_is_left_of_the_picture(tiny, pixels):
    half = np.zeros((32, 64), dtype=np.uint8)
    half[:, 32:] = 255
    seen = pixels.clone()
    seen[..., 32:] = 0

    mask, picture = beside_latents(with_input(tiny, "inpaint"), SIZE, pixels=pixels, mask=Image.fromarray(half)).split(
        [1, 4], dim=1
    )

    assert torch.equal(mask, torch.tensor([0.0] * 4 + [1.0] * 4).expand(1, 1, 4, 8))
    torch.testing.assert_close(picture, latents(tiny, seen) * tiny.scaling_factor)


@torch.no_grad()
def test_without_a_mask_all_is_remade_and_nothing_seen(tiny, pixels):
    model = with_input(tiny, "inpaint")
    got = beside_latents(model, SIZE)

    assert torch.equal(got[:, :1], torch.ones(1, 1, 4, 8))
    torch.testing.assert_close(got[:, 1:], latents(tiny, torch.zeros(1, 3, 32, 64)) * tiny.scaling_factor)
    assert torch.equal(beside_latents(model, SIZE, pixels=pixels), got)


@pytest.mark.parametrize(("kind", "words"), [("depth", "the depth of a picture"), ("low_res", "small pictures larger")])
def test_what_cannot_be_given_is_told(kind, words, tiny):
    with pytest.raises(UserError, match=words):
        beside_latents(with_input(tiny, kind), SIZE)


def png(image):
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def requests():
    picture = png(Image.linear_gradient("L").resize((64, 64)).convert("RGB"))
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    return (
        Txt2Img(**TASK),
        Img2Img(init_image=picture, **TASK),
        Inpaint(init_image=picture, mask=png(mask), **TASK),
    )


@pytest.mark.parametrize(("kind", "channels"), [("inpaint", 9), ("edit", 8)])
def test_such_models_run_every_task(kind, channels, bench, tiny, diffusers, requests):
    from webui.engine.generate import generate

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        unet = diffusers.UNet2DConditionModel(**{**tiny.unet.config, "in_channels": channels})
    model = dataclasses.replace(tiny, input=kind, unet=unet.eval().requires_grad_(False))
    laid_out = dataclasses.replace(bench, checkpoint=model)

    for request in requests:
        events = list(generate(request, laid_out, control=Control()))
        assert [event.image.size for event in events if isinstance(event, ImageReady)] == [(64, 64)]


@torch.no_grad()
@pytest.mark.parametrize("hidden", [0.0, 0.25, 1.0])
def test_less_hidden_shows_an_inpainting_model_more_of_the_picture(tiny, pixels, hidden):
    mask = Image.new("L", (64, 32), 255)
    got = beside_latents(with_input(tiny, "inpaint"), SIZE, pixels=pixels, mask=mask, hidden=hidden)

    torch.testing.assert_close(got[:, 1:], latents(tiny, pixels * (1 - hidden)) * tiny.scaling_factor)


@torch.no_grad()
@pytest.mark.parametrize(("soft", "shown"), [(True, 100 / 255), (False, 0.0)])
def test_a_soft_mask_keeps_its_greys(tiny, pixels, soft, shown):
    mask = Image.new("L", (64, 32), 100)
    got = beside_latents(with_input(tiny, "inpaint"), SIZE, pixels=pixels, mask=mask, soft=soft)

    torch.testing.assert_close(got[:, :1], torch.full((1, 1, 4, 8), shown))
    torch.testing.assert_close(got[:, 1:], latents(tiny, pixels * (1 - shown)) * tiny.scaling_factor)
