"""The refiner: which evaluations are whose, and that nothing else changes."""

from __future__ import annotations

import contextlib
import copy
import dataclasses

import pytest
import torch

from webui.core.errors import UserError
from webui.core.events import ImageReady
from webui.core.ports import Control
from webui.core.requests import Txt2Img
from webui.engine.generate import generate
from webui.engine.refiner import RefinedDenoiser, evaluations_before

REQUEST = Txt2Img(prompt="a [cat:dog:0.7]", steps=5, width=64, height=64, seed=7, sampler="Euler", refiner="other")


@pytest.mark.parametrize(
    ("switch_at", "evaluations", "before"), [(0.8, 20, 17), (0.5, 5, 3), (0.01, 5, 1), (1.0, 5, 5), (0.99, 1, 1)]
)
def test_the_refiner_has_what_lies_past_its_share(switch_at, evaluations, before):
    assert evaluations_before(switch_at, evaluations) == before
    assert all(index / evaluations <= switch_at for index in range(before))
    assert before == evaluations or before / evaluations > switch_at


class Named:
    """A denoiser that notes its calls."""

    def __init__(self, name: str, calls: list[str]) -> None:
        self._name, self._calls = name, calls

    def __call__(self, x, sigma):
        self._calls.append(self._name)
        return x

    def both(self, x, sigma):
        self._calls.append(f"{self._name} both")
        return x, x


def test_it_takes_over_once_and_for_good():
    calls: list[str] = []
    made: list[int] = []

    def take_over(count):
        made.append(count)
        return Named("refiner", calls)

    denoiser = RefinedDenoiser(Named("base", calls), take_over, before=2)
    x = torch.zeros(1)
    for sigma in (3.0, 1.0, 2.0):
        denoiser(x, sigma)
    denoiser.both(x, 3.0)
    assert calls == ["base", "base", "refiner", "refiner both"]
    assert made == [2]


def made(bench, request):
    return [
        event.image.tobytes() for event in generate(request, bench, control=Control()) if isinstance(event, ImageReady)
    ]


def with_refiner(bench, checkpoint, entered):
    @contextlib.contextmanager
    def refine():
        assert not torch.is_inference_mode_enabled()
        entered.append("in")
        yield dataclasses.replace(bench, checkpoint=checkpoint, weights="other")
        entered.append("out")

    return dataclasses.replace(bench, refine=refine)


def test_a_refiner_that_is_the_checkpoint_changes_nothing(bench, tiny):
    entered: list[str] = []
    request = dataclasses.replace(REQUEST, refiner_switch_at=0.5, batch_count=2)
    assert made(with_refiner(bench, tiny, entered), request) == made(bench, request)
    assert entered == ["in", "out"] * 2


def test_the_steps_past_its_share_are_the_refiner_s(bench, tiny):
    other = copy.deepcopy(tiny.unet)
    with torch.no_grad():
        other.conv_out.weight.mul_(1.5)
    refined = dataclasses.replace(tiny, unet=other)
    calls = []
    handles = [
        unet.register_forward_pre_hook(lambda module, arguments, name=name: calls.append(name))
        for name, unet in (("base", tiny.unet), ("refiner", other))
    ]
    try:
        entered: list[str] = []
        pictures = made(with_refiner(bench, refined, entered), dataclasses.replace(REQUEST, refiner_switch_at=0.5))
        assert calls == ["base"] * 3 + ["refiner"] * 2
        assert pictures != made(bench, REQUEST)
        assert made(with_refiner(bench, refined, entered), dataclasses.replace(REQUEST, refiner_switch_at=1.0)) == made(
            bench, REQUEST
        )
        assert entered == ["in", "out"]
    finally:
        for handle in handles:
            handle.remove()


def test_a_refiner_of_other_latents_is_refused(bench, tiny):
    request = dataclasses.replace(REQUEST, refiner_switch_at=0.5)
    with pytest.raises(UserError, match="latents of another kind"):
        made(with_refiner(bench, dataclasses.replace(tiny, scaling_factor=0.13), []), request)
