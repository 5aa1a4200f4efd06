"""What a workshop does to networks on a card: recorded calls and what is said without them, layouts by trial."""

import copy
from types import SimpleNamespace

import pytest
import torch

from webui.checkpoints.hash import ModelHashes
from webui.checkpoints.scan import CheckpointFolder
from webui.core.requests import Txt2Img
from webui.engine import workshop as workshop_module
from webui.engine.ladder import NOTHING_SAVED, Economy, Rung
from webui.engine.plan import Place
from webui.engine.tiled.vae import decode_in_strips
from webui.engine.workshop import Workshop
from webui.hardware.attention.remembered import Choice
from webui.hardware.layout import CHANNELS_LAST, lay
from webui.settings.schema import Settings

TILED = Economy(frozenset({Rung.TILED}))
FREED = Economy(frozenset({Rung.FREE}))


@pytest.fixture
def said(tmp_path, monkeypatch):
    """What a workshop says of recording, and whether it records."""
    asked = []
    monkeypatch.setattr(
        workshop_module, "set_recorded", lambda _unet, *, wanted, kernels: asked.append((wanted, kernels))
    )

    def ask(device, *, compiled, place=Place.KEPT, economy=NOTHING_SAVED, room=True):
        monkeypatch.setattr(workshop_module, "is_compiled", lambda _: compiled)
        workshop = Workshop(CheckpointFolder(tmp_path), Settings, SimpleNamespace(spec=ModelHashes))
        workshop.stock.card.device = torch.device(device)
        notices = workshop._record(torch.nn.Linear(1, 1), "sdpa", {"unet": place}, economy, room=lambda: room)
        return (*notices, asked.pop())

    return ask


def test_a_compiled_network_on_a_card_is_recorded(said):
    assert said("cuda", compiled=True) == ((True, "sdpa"),)
    assert said("cuda", compiled=True, economy=TILED) == ((True, "sdpa"),)
    assert said("cuda", compiled=False) == said("cpu", compiled=True) == ((False, "sdpa"),)


@pytest.mark.parametrize("place", [Place.VISITING, Place.STREAMED])
def test_weights_that_travel_cannot_be_recorded_and_it_is_said(said, place):
    notice, asked = said("cuda", compiled=True, place=place)
    assert "do not stay" in notice
    assert asked == (False, "sdpa")


def test_where_memory_ran_out_nothing_is_recorded(said):
    notice, asked = said("cuda", compiled=True, economy=FREED)
    assert "memory ran out" in notice
    assert asked == (False, "sdpa")


def test_recordings_do_not_take_the_memory_that_others_work_in(said):
    notice, asked = said("cuda", compiled=True, room=False)
    assert "memory that its other parts work in" in notice
    assert asked == (False, "sdpa")


@pytest.mark.parametrize(
    ("place", "words"), [(Place.STREAMED, "cannot be compiled"), (Place.VISITING, ""), (Place.KEPT, "")]
)
def test_a_network_that_comes_layer_by_layer_is_not_compiled(tmp_path, monkeypatch, place, words):
    asked = []
    monkeypatch.setattr(workshop_module, "why_not", lambda _: "")
    monkeypatch.setattr(workshop_module, "set_compiled", lambda _, *, wanted: asked.append(wanted))
    settings = Settings(compile=True)
    workshop = Workshop(CheckpointFolder(tmp_path), lambda: settings, SimpleNamespace(spec=ModelHashes))
    notices = workshop._compile(torch.nn.Linear(1, 1), Txt2Img(), {"unet": place})
    assert asked == [not words]
    assert words in "".join(notices)


def test_networks_lie_as_the_trial_for_their_device_says(tmp_path, monkeypatch):
    asked = []
    workshop = Workshop(CheckpointFolder(tmp_path), Settings, SimpleNamespace(spec=ModelHashes))
    workshop.stock.card.device = torch.device("cuda", 0)
    network = torch.nn.Conv2d(2, 2, 3)
    network.dtype = torch.float32

    def choose(device, dtype, _remembered, *, compiled):
        asked.append((device, dtype, compiled))
        return Choice(name=CHANNELS_LAST)

    monkeypatch.setattr(workshop_module, "choose_layout", choose)
    workshop._lay(network, compiled=True)
    assert asked == [(workshop.stock.device, torch.float32, True)]
    assert network.weight.is_contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def test_the_vae_in_strips_takes_channels_last(tiny):
    with torch.inference_mode(False):
        vae = copy.deepcopy(tiny.vae)
        lay(vae, Choice(name=CHANNELS_LAST))
    latents = torch.randn(1, 4, 11, 13, generator=torch.Generator().manual_seed(0))
    wanted = tiny.vae.decode(latents).sample
    for memory_bytes in (0, 2**40):
        made = decode_in_strips(vae, latents, tile=40, memory_bytes=memory_bytes)
        torch.testing.assert_close(made, wanted, rtol=1e-4, atol=1e-5)
