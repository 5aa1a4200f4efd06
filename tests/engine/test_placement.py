"""Weights that visit a device. There is none here, so the CPU stands in for it, and what is moved is watched."""

import dataclasses

import pytest
import torch
from torch import nn

from webui.core.requests import Extras
from webui.engine import placement
from webui.engine.placement import CPU, ModulePart, bring, bytes_on_device, copied, placed
from webui.engine.plan import Place

INPUT = torch.linspace(-1, 1, 8).reshape(2, 4)


@pytest.fixture
def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return (
            nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Sequential(nn.Linear(4, 2)))
            .eval()
            .requires_grad_(False)
        )


@pytest.fixture
def moves(monkeypatch):
    """Makes every copy a new tensor, as a move to a device does, and counts the bytes that are there at once."""

    class Moves:
        now = most = total = 0

    real = placement._to_device
    back = placement._put_back

    def to_device(tensors, device):
        pairs = real(tensors, device)
        for tensor, _ in pairs:
            tensor.data = tensor.data.clone()
            Moves.now += tensor.nbytes
            Moves.total += tensor.nbytes
        Moves.most = max(Moves.most, Moves.now)
        return pairs

    def put_back(originals):
        Moves.now -= sum(tensor.nbytes for tensor, _ in originals)
        back(originals)

    monkeypatch.setattr(placement, "_to_device", to_device)
    monkeypatch.setattr(placement, "_put_back", put_back)
    return Moves


def pointers(network):
    return [tensor.data_ptr() for tensor in (*network.parameters(), *network.buffers())]


@torch.inference_mode()
def test_a_visitor_works_with_copies_and_has_its_own_weights_back(network, moves):
    expected, before = network(INPUT), pointers(network)
    with copied(network, CPU):
        assert not set(pointers(network)) & set(before)
        assert torch.equal(network(INPUT), expected)
    assert pointers(network) == before
    assert moves.now == 0


@torch.inference_mode()
def test_a_visitor_that_was_widened_keeps_to_it(network, moves):
    """As a VAE that overflows in half precision does: the next picture should not overflow again."""
    with torch.inference_mode(False):
        network.half()
    with copied(network, CPU), torch.inference_mode(False):
        network.float()
    assert {weight.dtype for weight in network.parameters()} == {torch.float32}
    assert torch.isfinite(network(INPUT)).all()


def test_a_vae_comes_whole_where_its_weights_fit(bench, tiny, monkeypatch):
    came = []
    monkeypatch.setattr(placement, "free_bytes", lambda _device: placement.weight_bytes(tiny.vae))
    monkeypatch.setattr(placement, "copied", _noted(came, "whole"))
    monkeypatch.setattr(placement, "streamed", _noted(came, "by layers"))
    with dataclasses.replace(bench, device=torch.device("meta")).vae_at_work(Extras(), "decode"):
        pass
    assert came == ["whole"]


@pytest.mark.parametrize("free", [10**9, 10], ids=["whole", "by layers"])
def test_how_a_visitor_comes_is_measured(network, monkeypatch, free):
    came = []
    monkeypatch.setattr(placement, "free_bytes", lambda _device: free)
    monkeypatch.setattr(placement, "copied", _noted(came, "whole"))
    monkeypatch.setattr(placement, "streamed", _noted(came, "by layers"))
    with placed(network, torch.device("meta"), working_bytes=100):
        pass
    assert came == ["whole" if free > 10 else "by layers"]


def test_a_plan_may_say_that_a_visitor_is_streamed(network, monkeypatch):
    came = []
    monkeypatch.setattr(placement, "free_bytes", lambda _device: 10**9)
    monkeypatch.setattr(placement, "streamed", _noted(came, "by layers"))
    with placed(network, torch.device("meta"), place=Place.STREAMED):
        pass
    assert came == ["by layers"]


def _noted(came, name):
    from contextlib import nullcontext

    return lambda _module, _device: nullcontext(came.append(name))


def test_what_is_there_already_is_left_alone(network, moves):
    with placed(network, CPU):
        pass
    assert moves.total == 0


def test_parts_are_brought_to_where_the_plan_says(network):
    parts = {"unet": ModulePart.of(nn.Linear(2, 2)), "vae": ModulePart.of(network)}
    meta = torch.device("meta")  # takes weights and keeps none: enough to see who went there
    bring(parts, {"unet": Place.VISITING, "vae": Place.KEPT}, meta)
    assert [parts[name].in_main_memory for name in ("unet", "vae")] == [True, False]
    assert (
        bytes_on_device(parts.values()) == parts["vae"].weight_bytes == (16 + 4 + 4 + 4 + 8 + 2) * 4 + (4 + 4) * 4 + 8
    )


def test_a_move_that_fails_leaves_all_weights_in_main_memory(network, monkeypatch):
    moved = []

    def to(self, device):
        moved.append(str(device))
        if device != CPU:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(nn.Module, "to", to)
    with pytest.raises(torch.OutOfMemoryError):
        placement.move(network, torch.device("meta"))
    assert moved == ["meta", "cpu"]
