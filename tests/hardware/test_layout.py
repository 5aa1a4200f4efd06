"""The trial that decides how feature maps lie, with faked timings, and networks laid either way."""

from __future__ import annotations

import pytest
import torch

from webui.hardware import layout
from webui.hardware.attention.remembered import Choice, RememberedChoices
from webui.hardware.layout import CHANNELS_LAST, USUAL, choose_layout, lay, time_layouts
from webui.hardware.low_bits import FORMATS, pack_weights

CARD = torch.device("cuda", 0)
CPU = torch.device("cpu")


@pytest.fixture
def timed(monkeypatch):
    """What the trial is told, and how often it was asked for."""
    told = {USUAL: 1.0, CHANNELS_LAST: 1.0, "asked": []}

    def time_layouts(_device, dtype, *, compiled, clock):
        told["asked"].append((dtype, compiled))
        return {name: told[name] for name in (USUAL, CHANNELS_LAST)}

    monkeypatch.setattr(layout, "time_layouts", time_layouts)
    monkeypatch.setattr(layout, "describe", lambda _: "A Card")
    return told


@pytest.mark.parametrize(("seconds", "name"), [(0.9, CHANNELS_LAST), (0.99, USUAL), (1.2, USUAL)])
def test_only_what_is_clearly_faster_is_taken(timed, seconds, name):
    timed[CHANNELS_LAST] = seconds
    assert choose_layout(CARD, torch.float16, RememberedChoices()).name == name


def test_it_is_timed_once_for_each_dtype_and_kind(timed, tmp_path):
    for _ in range(2):
        remembered = RememberedChoices(tmp_path / "choices.json", {})
        choose_layout(CARD, torch.float16, remembered)
        choose_layout(CARD, torch.float16, remembered, compiled=True)
        choose_layout(CARD, torch.float32, remembered)
    assert timed["asked"] == [(torch.float16, False), (torch.float16, True), (torch.float32, False)]


def test_on_the_cpu_bfloat16_lies_channels_last(timed):
    choice = choose_layout(CPU, torch.bfloat16, RememberedChoices())
    assert (choice.name, timed["asked"]) == (CHANNELS_LAST, [])


def test_on_the_cpu_nothing_is_tried(timed):
    choice = choose_layout(CPU, torch.float32, RememberedChoices())
    assert (choice.name, timed["asked"]) == (USUAL, [])
    assert "cpu" in choice.refused[CHANNELS_LAST]


@pytest.mark.parametrize("compiled", [False, True])
def test_the_trial_takes_the_best_of_its_runs(monkeypatch, compiled):
    monkeypatch.setattr(layout, "_SHAPE", (1, 32, 4, 4))
    ticks = iter([0, 8, 0, 16, 0, 24, 0, 4, 0, 24, 0, 24])  # usual, channels last, usual, …
    seconds = time_layouts(CPU, torch.float32, compiled=compiled, clock=lambda: next(ticks))
    assert seconds == {USUAL: 1.0, CHANNELS_LAST: 0.5}


@pytest.mark.parametrize("weights", ["full", *FORMATS])
@torch.inference_mode()
def test_a_network_answers_the_same_either_way(weights, make_unet):
    with torch.inference_mode(False):
        unet = make_unet()
        pack_weights(unet, weights)
    x, states = torch.randn(2, 4, 8, 8), torch.randn(2, 7, 16)
    wanted = unet(x, 500, states).sample
    for name in (CHANNELS_LAST, USUAL):
        with torch.inference_mode(False):
            lay(unet, Choice(name=name))
        assert unet.conv_in.weight.is_contiguous(memory_format=layout._FORMATS[name])
        assert torch.allclose(unet(x, 500, states).sample, wanted, atol=1e-5)
