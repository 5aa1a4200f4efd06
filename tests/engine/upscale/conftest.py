"""Networks that spandrel knows, small and with random weights, and one whose failures can be ordered."""

import dataclasses
import io

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from webui.engine.upscale import load_upscaler

CPU = torch.device("cpu")


def compact_state(*, scale, channels=3, features=8):
    """A SRVGGNetCompact in Real-ESRGAN's names: two convolutions and the way out. Sees three pixels far."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for index, (inputs, outputs) in enumerate(
        ((channels, features), (features, features), (features, channels * scale**2))
    ):
        state[f"body.{index * 2}.weight"] = torch.randn(outputs, inputs, 3, 3, generator=generator) * 0.15
        state[f"body.{index * 2}.bias"] = torch.randn(outputs, generator=generator) * 0.05
        if index < 2:
            state[f"body.{index * 2 + 1}.weight"] = torch.full((outputs,), 0.2)
    return state


@pytest.fixture(scope="session")
def compact_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("upscalers") / "compact.safetensors"
    save_file(compact_state(scale=2), path)
    return path


@pytest.fixture(scope="session")
def network(compact_file):
    """Enlarges by 2."""
    return load_upscaler(compact_file, CPU)


class Scripted:
    """Stands before a spandrel model and does first what `before` says with the pixels of each call."""

    def __init__(self, model, before):
        self._model = model
        self._before = before
        self.sizes = []

    def __getattr__(self, name):
        return getattr(self._model, name)

    def __call__(self, pixels):
        self.sizes.append(tuple(pixels.shape[2:]))
        return self._before(pixels, self._model)


@pytest.fixture
def scripted(network):
    """``scripted(before)`` is the network with calls that go through ``before(pixels, model)``."""

    def make(before):
        return dataclasses.replace(network, model=Scripted(network.model, before))

    return make


@pytest.fixture(scope="session")
def smooth_picture():
    """``smooth_picture(width, height)``: soft colours, the same each time."""

    def make(width, height):
        rng = np.random.default_rng(4)
        small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        return small.resize((width, height), Image.Resampling.BICUBIC)

    return make


@pytest.fixture(scope="session")
def png():
    def make(image, **options):
        buffer = io.BytesIO()
        image.save(buffer, "PNG", **options)
        return buffer.getvalue()

    return make
