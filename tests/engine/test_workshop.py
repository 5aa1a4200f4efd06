"""Who stays on a graphics card, played through without one: tensors without memory stand for those on the card."""

import pytest
import torch
from torch import nn

from webui.checkpoints.hash import ModelHashes
from webui.checkpoints.scan import CheckpointFolder
from webui.core.requests import Txt2Img
from webui.engine import workshop as workshop_module
from webui.engine.placement import ModulePart, bytes_on_device
from webui.engine.residents import Resident
from webui.engine.workshop import Workshop
from webui.settings.schema import Settings

CARD_BYTES = 1000
REQUEST = Txt2Img()


@pytest.fixture
def settings():
    return {}


@pytest.fixture
def card(tmp_path, monkeypatch, settings):
    """A workshop whose card has `CARD_BYTES`, where work takes nothing."""
    workshop = Workshop(CheckpointFolder(tmp_path), lambda: Settings(**settings), ModelHashes())
    workshop.device = torch.device("meta")

    def move(module, device):
        module.to_empty(device=device)

    def free(_device):
        parts = [part for resident in workshop.residents.all() for part in resident.parts.values()]
        return CARD_BYTES - bytes_on_device(parts)

    monkeypatch.setattr("webui.engine.placement.move", move)
    monkeypatch.setattr(workshop_module, "move", move)
    monkeypatch.setattr(workshop_module, "free_bytes", free)
    monkeypatch.setattr(workshop_module, "working_bytes", lambda _name, **_: 0)
    return workshop


def use(workshop, name, **sizes):
    """One request for the model `name`, its components in bytes (multiples of 4)."""

    def load():
        parts = {part: ModulePart.of(nn.Linear(size // 4, 1, bias=False)) for part, size in sizes.items()}
        return Resident(name=name, parts=parts, model=None)

    with workshop.residents.turn():
        resident = workshop.residents.get(name, load, expected_bytes=0)
        workshop._arrange(resident.parts, REQUEST)
    return resident.parts


def on_card(*models):
    return [name for parts in models for name, part in parts.items() if not part.in_main_memory]


def test_the_least_recently_used_makes_room(card):
    first = use(card, "first", unet=400)
    second = use(card, "second", unet=400)
    assert on_card(first, second) == ["unet", "unet"]
    third = use(card, "third", unet=400)
    assert [on_card(parts) for parts in (first, second, third)] == [[], ["unet"], ["unet"]]
    use(card, "first")
    assert [on_card(parts) for parts in (first, second, third)] == [["unet"], [], ["unet"]]


def test_what_does_not_fit_waits_in_main_memory_for_its_turn(card):
    parts = use(card, "large", text_encoder_1=300, unet=600, vae=200)
    assert on_card(parts) == ["unet"]
    parts = use(card, "huge", text_encoder_1=300, unet=1600, vae=200)
    assert on_card(parts) == ["text_encoder_1", "vae"]


def test_the_setting_is_a_limit(card, settings):
    settings["video_memory_gib"] = 500 / 2**30
    first = use(card, "first", unet=400)
    second = use(card, "second", unet=400)
    assert [on_card(parts) for parts in (first, second)] == [[], ["unet"]]


def test_a_checkpoint_is_loaded_to_where_there_is_room(card):
    first = use(card, "first", unet=400)
    assert card._home(600) == card.device
    assert card._home(1000) == card.device
    assert on_card(first) == []
    assert card._home(1001) == torch.device("cpu")
