"""Decoding and encoding where half precision overflows."""

import copy

import pytest
import torch

from webui.core.errors import UserError
from webui.core.events import ImageReady, Notice
from webui.core.requests import Txt2Img
from webui.engine.pixels import OVERFLOW, decode, encode

LATENTS = torch.linspace(-2, 2, 4 * 8 * 8).reshape(1, 4, 8, 8)


@pytest.fixture
def vae(tiny):
    return copy.deepcopy(tiny.vae)


def overflowing(vae, module):
    """`vae` in half precision, the sums of whose `module` are beyond its 65504, as inside SDXL's first VAE."""
    convolution = vae.get_submodule(module)
    shift = torch.linspace(0.05, 0.1, convolution.out_channels)[:, None, None, None]
    convolution.weight.data.clamp_(-0.5, 0.5).add_(shift).mul_(5e4)
    return vae.half()


@torch.inference_mode()
def test_a_decoder_that_overflows_in_half_precision_goes_on_in_full(vae):
    overflowing(vae, "decoder.conv_in")
    expected = decode(copy.deepcopy(vae).float(), LATENTS, 0.5)
    said = []

    pixels = decode(vae, LATENTS, 0.5, say=said.append)

    assert said == [OVERFLOW]
    assert torch.equal(pixels, expected)
    # From then on it starts there.
    assert torch.equal(decode(vae, LATENTS, 0.5, say=said.append), expected)
    assert said == [OVERFLOW]


@torch.inference_mode()
def test_an_encoder_too(vae, caplog):
    overflowing(vae, "encoder.conv_in")
    latents = encode(vae, torch.ones(1, 3, 64, 64), 0.5)

    assert latents.isfinite().all()
    assert OVERFLOW in caplog.text


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_what_full_precision_cannot_do_either_is_told(vae, dtype):
    torch.nn.init.constant_(vae.decoder.conv_out.bias, float("nan"))
    with pytest.raises(UserError, match="choose another VAE"):
        decode(vae.to(dtype), LATENTS, 0.5, say=lambda _: None)


@torch.inference_mode()
def test_an_ordinary_decode_stays_in_half_precision_and_says_nothing(vae):
    decode(vae.half(), LATENTS, 0.5, say=lambda _: pytest.fail("said something"))
    assert vae.dtype == torch.float16


def test_the_notice_comes_before_the_picture(run, bench, monkeypatch):
    def say_and_decode(vae, latents, factor, *, tile=None, say):
        say("It overflowed.")
        return decode(vae, latents, factor)

    monkeypatch.setattr("webui.engine.generate.decode", say_and_decode)
    events = [
        event for event in run(Txt2Img(steps=1, width=64, height=64, seed=1)) if isinstance(event, Notice | ImageReady)
    ]

    assert [type(event) for event in events] == [Notice, ImageReady]
    assert events[0].text == "It overflowed."
