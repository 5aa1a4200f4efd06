"""What networks compute in, by the settings; bfloat16 runs on any processor, and is quick on some."""

import dataclasses

import numpy as np
import pytest
import torch

from webui.checkpoints.scan import CheckpointFolder
from webui.core.errors import UserError
from webui.core.events import Finished, ImageReady
from webui.core.ports import Control
from webui.core.requests import Txt2Img
from webui.engine.manager import EngineManager
from webui.settings.schema import Settings

REQUEST = Txt2Img(prompt="a cat", steps=3, width=64, height=64, cfg_scale=3.0, seed=1)


class Chosen:
    """Settings that a test changes."""

    def __init__(self):
        self.now = Settings()

    def __call__(self):
        return self.now

    def update(self, **values):
        self.now = self.now.model_copy(update=values)


@pytest.fixture
def chosen():
    return Chosen()


@pytest.fixture
def engine(tiny_checkpoint, chosen):
    return EngineManager(CheckpointFolder(tiny_checkpoint), chosen)


def picture(engine, request=REQUEST):
    events = list(engine.generate(request, control=Control()))
    assert isinstance(events[-1], Finished)
    return next(np.asarray(event.image, dtype=float) for event in events if isinstance(event, ImageReady))


def weights_in(engine):
    with engine.borrowed() as workshop, workshop.bench(REQUEST) as bench:
        checkpoint = bench.checkpoint
        modules = (checkpoint.unet, checkpoint.vae, *(encoder.module for encoder in checkpoint.text_encoders))
        return {weight.dtype for module in modules for weight in module.parameters()}


def test_bfloat16_draws_nearly_what_float32_draws(engine, chosen):
    exact = picture(engine)
    chosen.update(precision="bfloat16")
    rounded = picture(engine)
    assert weights_in(engine) == {torch.bfloat16}
    error = np.abs(exact - rounded)
    assert 0 < error.mean() < 3  # of 255


def test_another_precision_takes_nothing_of_the_one_before(engine, chosen):
    exact = picture(engine)
    chosen.update(precision="bfloat16")
    picture(engine)
    chosen.update(precision="float32")
    np.testing.assert_array_equal(picture(engine), exact)
    assert weights_in(engine) == {torch.float32}


def test_by_itself_a_processor_that_multiplies_bfloat16_computes_in_it(engine, monkeypatch):
    monkeypatch.setattr("webui.hardware.device.multiplies_bfloat16", lambda: True)
    assert weights_in(engine) == {torch.bfloat16}


def test_a_precision_that_is_not_there_is_told_and_the_next_picture_comes(engine, chosen):
    chosen.update(precision="float16")
    with pytest.raises(UserError, match=r"float16 is for graphics cards.* choose bfloat16 or float32"):
        picture(engine)
    chosen.update(precision="auto")
    assert picture(engine).shape == (64, 64, 3)


def test_bfloat16_lies_channels_last_and_float32_does_not(engine, chosen):
    def last():
        with engine.borrowed() as workshop, workshop.bench(REQUEST) as bench:
            return bench.checkpoint.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)

    chosen.update(precision="bfloat16")
    assert last()
    chosen.update(precision="float32")
    assert not last()


def test_a_vae_that_overflows_goes_on_in_full(engine, chosen):
    """bfloat16 reaches as far as float32, so a VAE of its own that is not finite in it is made so here."""
    chosen.update(precision="bfloat16")
    with engine.borrowed() as workshop, workshop.bench(REQUEST) as bench:
        vae = bench.checkpoint.vae
    spoil = vae.decoder.register_forward_hook(
        lambda _module, _given, made: made * float("nan") if made.dtype == torch.bfloat16 else made
    )
    try:
        events = list(engine.generate(dataclasses.replace(REQUEST, seed=2), control=Control()))
    finally:
        spoil.remove()
    assert any("full precision" in getattr(event, "text", "") for event in events)
    assert isinstance(events[-1], Finished)
