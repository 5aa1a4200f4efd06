"""Who stays on a graphics card, played through without one: tensors without memory stand for those on the card."""

import pytest
import torch
from torch import nn

from webui.core.requests import Txt2Img
from webui.engine import card as card_module
from webui.engine import plan as plan_module
from webui.engine.card import Card
from webui.engine.ladder import NOTHING_SAVED, Economy, Rung
from webui.engine.placement import ModulePart, bytes_on_device
from webui.engine.plan import Place
from webui.engine.residents import Resident, Residents
from webui.settings.schema import Settings

CARD_BYTES = 1000
REQUEST = Txt2Img()


@pytest.fixture
def settings():
    return {}


@pytest.fixture
def card(monkeypatch, settings):
    """A card of `CARD_BYTES`, where work takes nothing."""
    residents = Residents(lambda: 2**40, lambda: None)
    card = Card(residents, lambda: Settings(**settings))
    card.device = torch.device("meta")

    def move(module, device):
        module.to_empty(device=device)

    def free(_device):
        parts = [part for resident in residents.all() for part in resident.parts.values()]
        return CARD_BYTES - bytes_on_device(parts)

    monkeypatch.setattr("webui.engine.placement.move", move)
    monkeypatch.setattr(card_module, "move", move)
    monkeypatch.setattr(card_module, "free_bytes", free)
    monkeypatch.setattr(plan_module, "working_bytes", lambda _name, **_: 0)
    return card


def use(card, name, *, economy=NOTHING_SAVED, **sizes):
    """One request for the model `name`, its components in bytes (multiples of 4)."""

    def load():
        parts = {part: ModulePart.of(nn.Linear(size // 4, 1, bias=False)) for part, size in sizes.items()}
        return Resident(name=name, parts=parts, model=None)

    with card._residents.turn():
        resident = card._residents.get(name, load, expected_bytes=0)
        card.last_places, card.last_economy = card.arrange(resident.parts, REQUEST, economy)
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
    assert card.home(600) == card.device
    assert card.home(1000) == card.device
    assert on_card(first) == []
    assert card.home(1001) == torch.device("cpu")


@pytest.mark.parametrize(
    ("use_of_memory", "economy", "unet"),
    [
        ("medvram", NOTHING_SAVED, Place.VISITING),
        ("lowvram", NOTHING_SAVED, Place.STREAMED),
        ("auto", Economy(frozenset({Rung.OFFLOAD})), Place.STREAMED),
    ],
)
def test_a_bound_or_a_measure_lets_nothing_stay(card, settings, use_of_memory, economy, unet):
    settings["video_memory_use"] = use_of_memory
    parts = use(card, "small", text_encoder_1=100, unet=200, vae=100, economy=economy)
    assert on_card(parts) == []
    assert card.last_places["unet"] is unet


def test_a_vae_whose_work_does_not_fit_works_in_tiles(card, monkeypatch):
    work = {"vae": CARD_BYTES * 2**20}

    def working_bytes(name, *, pixels, batch_size):
        return work.get(name, 0) if pixels > 256**2 else 0

    monkeypatch.setattr(card_module, "VAE_TILE", 256)
    monkeypatch.setattr(plan_module, "working_bytes", working_bytes)
    parts = use(card, "large", unet=600, vae=200)
    assert card.last_economy == Economy(frozenset({Rung.TILED}))
    assert on_card(parts) == ["unet", "vae"]


@pytest.fixture
def recordings(card, monkeypatch):
    """How many bytes recorded calls keep on the card, by the module they are of."""
    held = {}
    free = card_module.free_bytes
    monkeypatch.setattr(card_module, "free_bytes", lambda device: free(device) - sum(held.values()))
    monkeypatch.setattr(card_module, "recorded_bytes", lambda module: held.get(module, 0))
    monkeypatch.setattr(card_module, "set_recorded", lambda module, *, wanted: held.pop(module, None))
    return held


def test_recordings_give_way_to_work_after_other_models_did(card, recordings, monkeypatch):
    other = use(card, "other", unet=300)
    parts = use(card, "large", unet=400)
    recordings[parts["unet"].module] = 200
    use(card, "large")
    assert len(recordings) == len(on_card(other)) == 1
    monkeypatch.setattr(plan_module, "working_bytes", lambda _name, **_: 350)
    use(card, "large")
    assert (len(recordings), on_card(other)) == (1, [])
    monkeypatch.setattr(plan_module, "working_bytes", lambda _name, **_: 450)
    use(card, "large")
    assert not recordings
    assert on_card(parts) == ["unet"]


def test_there_is_room_to_record_where_the_others_can_still_work(card, recordings, monkeypatch):
    parts = use(card, "small", unet=400, vae=200)
    work = {"unet": 100, "vae": 300}
    monkeypatch.setattr(plan_module, "working_bytes", lambda name, **_: work[name])
    assert card.has_room_to_record(parts, REQUEST, NOTHING_SAVED)
    recordings[parts["unet"].module] = 100  # as they are now those of the same size
    assert card.has_room_to_record(parts, REQUEST, NOTHING_SAVED)
    work["vae"] += 1
    assert not card.has_room_to_record(parts, REQUEST, NOTHING_SAVED)


def test_memory_that_ran_out_takes_all_recordings_along(card, recordings, monkeypatch):
    monkeypatch.setattr(card_module, "give_back", lambda _device: None)
    parts = use(card, "small", unet=400)
    recordings[parts["unet"].module] = 100
    card.release_memory()
    assert not recordings


def test_the_limit_of_the_setting_is_torchs_too(monkeypatch):
    from types import SimpleNamespace

    from webui.hardware import memory

    said = []
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=1000))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *given: said.append(given))
    card = torch.device("cuda", 0)
    for allowed in (250, 0, 4000):
        memory.limit(card, allowed)
    assert said == [(0.25, card), (1.0, card), (1.0, card)]
    memory.limit(torch.device("cpu"), 250)
    assert len(said) == 3
