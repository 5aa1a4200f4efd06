"""Loopback: a row of img2img requests, each from the picture before; its strengths, seeds, counts and stops."""

from __future__ import annotations

import dataclasses
import io
import math

import pytest
from PIL import Image

from webui.core.events import Finished, ImageReady, Notice, Started, Step
from webui.core.infotext import infotext_to_request, parse_infotext
from webui.core.ports import Control
from webui.core.requests import Img2Img, Loopback, StrengthCurve
from webui.engine.loopback import loopback, strength_at


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


REQUEST = Img2Img(
    prompt="a circle",
    sampler="Euler",
    steps=4,
    width=64,
    height=64,
    seed=7,
    denoising_strength=0.25,
    init_image=png(Image.linear_gradient("L").resize((64, 64)).convert("RGB")),
    loopback=Loopback(loops=3, final_strength=0.75),
)


@pytest.mark.parametrize(
    ("curve", "middle"),
    [
        (StrengthCurve.LINEAR, 0.5),
        (StrengthCurve.AGGRESSIVE, 0.2 + 0.6 * math.sqrt(0.5)),
        (StrengthCurve.LAZY, 0.2 + 0.6 * (1 - math.sqrt(0.5))),
    ],
)
def test_the_strength_goes_from_first_to_final(curve, middle):
    asked = Loopback(loops=5, final_strength=0.8, curve=curve)
    strengths = [strength_at(asked, 0.2, loop) for loop in range(5)]
    assert (strengths[0], strengths[2], strengths[4]) == pytest.approx((0.2, middle, 0.8))
    assert strengths == sorted(strengths)


def test_a_single_loop_keeps_its_strength():
    assert strength_at(Loopback(loops=1, final_strength=1.0), 0.3, 0) == 0.3


@pytest.fixture
def run_loops(bench):
    return lambda request, **options: list(loopback(request, bench, control=Control(), **options))


def images(events):
    return [event for event in events if isinstance(event, ImageReady)]


def steps(events):
    return [event for event in events if isinstance(event, Step)]


def test_each_loop_is_the_img2img_of_the_picture_before(run_loops, run):
    picture = REQUEST.init_image
    events = run_loops(REQUEST)
    for index, event in enumerate(images(events)):
        alone = dataclasses.replace(
            REQUEST,
            init_image=picture,
            seed=7 + index,
            denoising_strength=(0.25, 0.5, 0.75)[index],
            loopback=Loopback(),
        )
        (wanted,) = images(run(alone))
        assert (event.index, event.seed) == (index, 7 + index)
        assert event.image.tobytes() == wanted.image.tobytes()
        # The text asks for exactly that.
        pasted = infotext_to_request(parse_infotext(event.infotext), Img2Img(init_image=picture))
        assert pasted.warnings == ()
        assert pasted.request == alone
        picture = png(event.image)
    assert len(images(events)) == REQUEST.total_images == 3


def test_steps_are_counted_over_all_loops_of_all_pictures(run_loops):
    request = dataclasses.replace(REQUEST, batch_size=2, batch_count=2)
    events = run_loops(request)
    per_chain = 2 + 3 + 4
    assert events[0] == Started(total_images=12, total_steps=4 * per_chain, checkpoint="tiny", attention="test")
    assert [step.index for step in steps(events)] == list(range(1, 4 * per_chain + 1))
    assert [step.batch for step in steps(events)] == [0] * 2 * per_chain + [1] * 2 * per_chain
    assert [event.index for event in images(events)] == list(range(12))
    assert [event.seed for event in images(events)] == list(range(7, 19))
    assert sum(isinstance(event, Started | Finished) for event in events) == 2
    # Each chain begins with the request's own picture.
    alone = images(run_loops(dataclasses.replace(REQUEST, seed=10)))
    assert [event.image.tobytes() for event in images(events)[3:6]] == [event.image.tobytes() for event in alone]


def test_it_goes_on_where_it_was(run_loops):
    request = dataclasses.replace(REQUEST, batch_count=2)
    whole, rest = images(run_loops(request)), images(run_loops(request, start_batch=1))
    assert [event.index for event in rest] == [3, 4, 5]
    assert [event.image.tobytes() for event in rest] == [event.image.tobytes() for event in whole[3:]]


def test_a_skip_ends_the_chain(bench):
    control = Control()
    kept = []
    for event in loopback(dataclasses.replace(REQUEST, batch_count=2), bench, control=control):
        if isinstance(event, Step) and event.index == 4:  # in the second loop
            control.skip()
        if isinstance(event, ImageReady):
            kept.append(event.index)
    assert kept == [0, 3, 4, 5]


def test_stopping_stops_at_once(bench, tiny):
    calls = []
    handle = tiny.unet.register_forward_pre_hook(lambda module, arguments: calls.append(1))
    try:
        events = loopback(REQUEST, bench, control=Control())
        while not (isinstance(event := next(events), Step) and event.index == 3):
            pass
        events.close()
    finally:
        handle.remove()
    assert len(calls) == 3


def test_notices_come_once(bench):
    told = dataclasses.replace(bench, notices=("The LoRA lacks a module.",))
    events = list(loopback(REQUEST, told, control=Control()))
    assert sum(isinstance(event, Notice) for event in events) == 1
