"""A model grown by an outer level: it keeps what it was, and its new level hands things through."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from tools.builtin_model import diffusion, growing, networks

SMALLER = dataclasses.replace(
    networks.PRESETS["tiny"], unet_channels=(32, 64), unet_attends=(True, False), text_width=32
)
LARGER = dataclasses.replace(SMALLER, unet_channels=(32, 32, 64), unet_attends=(False, True, False))


@pytest.fixture(scope="module")
def inner() -> torch.nn.Module:
    return networks.make_unet(SMALLER)


@pytest.fixture(scope="module")
def outer(inner: torch.nn.Module) -> networks.UNet2DConditionModel:
    unet = networks.make_unet(LARGER)
    unet.load_state_dict(growing.grown(inner.state_dict(), LARGER))
    return unet


def test_the_old_weights_are_all_there(inner: torch.nn.Module, outer: networks.UNet2DConditionModel) -> None:
    found = outer.state_dict()
    for key, weight in inner.state_dict().items():
        moved = key.replace("down_blocks.1", "down_blocks.2").replace("down_blocks.0", "down_blocks.1")
        assert torch.equal(found[moved], weight), key


@torch.inference_mode()
def test_the_new_level_halves_and_doubles_and_adds_nothing(outer: networks.UNet2DConditionModel) -> None:
    features, time = torch.randn(2, 32, 8, 8), torch.randn(2, 128)
    down, up = outer.down_blocks[0], outer.up_blocks[-1]
    halved, skipped = down(features, time)
    assert torch.equal(skipped[0], features)
    # The kernel's zeros lie at its first row and column, so every mean is of pixels that are there.
    assert torch.allclose(halved, torch.nn.functional.avg_pool2d(features, 2), atol=1e-6)
    doubled = outer.up_blocks[-2].upsamplers[0](halved)  # pyright: ignore
    assert torch.allclose(doubled, halved.repeat_interleave(2, 2).repeat_interleave(2, 3), atol=1e-6)
    assert torch.allclose(up(doubled, (skipped[0], skipped[0]), time), doubled, atol=1e-6)


def test_a_model_that_does_not_fit_is_refused(inner: torch.nn.Module) -> None:
    wider = dataclasses.replace(LARGER, unet_channels=(64, 64, 64))
    with pytest.raises(ValueError, match="has no place in the larger one"):
        growing.grown(inner.state_dict(), wider)


def test_training_begins_from_the_average(tmp_path: Path) -> None:
    smaller = diffusion._Guess(SMALLER)
    torch.save({"ema": smaller.state_dict()}, tmp_path / "unet.pt")
    larger = diffusion._Guess(LARGER)
    growing.begin(larger, tmp_path / "unet.pt", LARGER)
    assert torch.equal(larger.unet.conv_in.weight, smaller.unet.conv_in.weight)
    for key, weight in smaller.text.state_dict().items():
        assert torch.equal(larger.text.state_dict()[key], weight), key
