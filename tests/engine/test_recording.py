"""When the calls of a compiled network are recorded as CUDA graphs, and what is said where they are not."""

from types import SimpleNamespace

import pytest
import torch

from webui.checkpoints.hash import ModelHashes
from webui.checkpoints.scan import CheckpointFolder
from webui.engine import workshop as workshop_module
from webui.engine.ladder import NOTHING_SAVED, Economy, Rung
from webui.engine.plan import Place
from webui.engine.workshop import Workshop
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

    def ask(device, *, compiled, place=Place.KEPT, economy=NOTHING_SAVED):
        monkeypatch.setattr(workshop_module, "is_compiled", lambda _: compiled)
        workshop = Workshop(CheckpointFolder(tmp_path), Settings, SimpleNamespace(spec=ModelHashes))
        workshop.stock.device = torch.device(device)
        notices = workshop._record(torch.nn.Linear(1, 1), "sdpa", {"unet": place}, economy)
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
