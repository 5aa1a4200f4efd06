"""Memory that runs out in each part of the engine, and numbers that overflow: what is tried, told and remembered.

A stand-in memory fails as torch does while what is asked of it is too large; each measure makes that smaller.
"""

import dataclasses

import pytest
import torch
from PIL import Image
from torch import nn

from webui.checkpoints.scan import CheckpointFolder
from webui.core.errors import OutOfMemory, Overflow
from webui.core.events import Finished, ImageReady, Notice, Started, Step
from webui.core.ports import Control
from webui.core.requests import Txt2Img
from webui.engine import bench as bench_module
from webui.engine.attempts import persevere
from webui.engine.ladder import NOTHING_SAVED, Economy, Rung
from webui.engine.manager import EngineManager
from webui.settings.schema import Settings

REQUEST = Txt2Img(prompt="a red circle", negative_prompt="blue", steps=2, width=64, height=64, seed=1)
ERRORS = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory: you tried"),
]


@pytest.fixture(scope="module")
def folder(tiny_checkpoint):
    return CheckpointFolder(tiny_checkpoint)


@pytest.fixture(scope="module")
def warm(folder):
    engine = EngineManager(folder, Settings)
    engine.warm_up()
    return engine


@pytest.fixture
def engine(warm):
    """An engine that has its checkpoint and remembers no measures."""
    warm._remembered._known.clear()
    return warm


def run(engine, request=REQUEST, **options):
    return list(engine.generate(request, control=Control(), **options))


def notices(events):
    return [event.text for event in events if isinstance(event, Notice)]


def pictures(events):
    return [event.image.tobytes() for event in events if isinstance(event, ImageReady)]


def modules(engine):
    return engine._workshop.stock.residents.all()[0].model.checkpoint


@pytest.fixture
def fails_while(monkeypatch, engine):
    """Makes a module raise `error` as long as `too_much` says so of what it is given."""

    def arm(module, too_much, error=ERRORS[1]):
        seen = []

        def check(_module, inputs, named):
            seen.append(inputs)
            if too_much(*inputs, **named):
                raise error

        handle = module.register_forward_pre_hook(check, with_kwargs=True)
        monkeypatch.callbacks.append(handle.remove)
        return seen

    monkeypatch.callbacks = []
    yield arm
    for remove in monkeypatch.callbacks:
        remove()


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_text_encoder_that_has_no_room_is_one_clear_error(engine, fails_while, error):
    checkpoint = modules(engine)
    fails_while(checkpoint.text_encoders[0].module, lambda *_, **__: True, error)
    words = dataclasses.replace(REQUEST, prompt=f"never encoded before {type(error).__name__}")
    with pytest.raises(OutOfMemory, match="64x64 with batch size 1, whatever was tried"):
        run(engine, words)


def test_a_unet_without_room_for_both_prompts_gets_them_one_after_the_other(engine, fails_while):
    expected = pictures(run(engine))
    seen = fails_while(modules(engine).unet, lambda x, *_, **__: len(x) > 1)
    events = run(engine)
    assert notices(events) == [
        f"Memory ran out; the picture is tried again {rung.value}." for rung in (Rung.FREE, Rung.CHUNKED, Rung.SPLIT)
    ]
    assert [type(event) for event in events if not isinstance(event, Notice)] == [
        Started,
        Step,
        Step,
        ImageReady,
        Finished,
    ]
    difference = max(abs(a - b) for a, b in zip(pictures(events)[0], expected[0], strict=True))
    assert difference <= 1  # of 255: another kernel and another order of sums
    seen.clear()
    again = run(engine)
    assert notices(again) == []  # what sufficed is remembered
    assert len(seen) == 4
    assert pictures(again) == pictures(events)
    other = dataclasses.replace(REQUEST, width=128, height=128)
    assert notices(run(engine, other))  # for that size alone


def test_a_batch_without_room_is_made_one_by_one(engine, fails_while):
    request = dataclasses.replace(REQUEST, batch_size=2, batch_count=2)
    expected = pictures(run(engine, request))
    fails_while(modules(engine).unet, lambda x, *_, **__: len(x) > 1)
    events = run(engine, request)
    assert [event.index for event in events if isinstance(event, ImageReady)] == [0, 1, 2, 3]
    assert notices(events)[-1].endswith(f"{Rung.SINGLY.value}.")
    for got, wanted in zip(pictures(events), expected, strict=True):
        assert max(abs(a - b) for a, b in zip(got, wanted, strict=True)) <= 1


def test_a_vae_without_room_works_in_tiles(engine, monkeypatch):
    """The decoder stands in for itself: it has room for a picture only in tiles."""
    tiles = []
    real = bench_module.Bench.vae_at_work

    def vae_at_work(bench, *arguments):
        tiles.append(bench.vae_tile)
        if not bench.vae_tile and arguments[-1] == "decode":
            with bench.phases("decode"):
                raise torch.OutOfMemoryError("CUDA out of memory")
        return real(bench, *arguments)

    monkeypatch.setattr(bench_module.Bench, "vae_at_work", vae_at_work)
    events = run(engine)
    assert notices(events)[-1].endswith(f"{Rung.TILED.value}.")
    assert len(notices(events)) == 3
    assert tiles[-1] == bench_module.VAE_TILE
    assert len(pictures(events)) == 1


def test_a_later_request_runs_after_all_measures_failed(engine, monkeypatch):
    def fail(*_arguments, **_options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr("webui.engine.generate.decode", fail)
        with pytest.raises(OutOfMemory, match="64x64"):
            run(engine)
    assert isinstance(run(engine)[-1], Finished)
    assert notices(run(engine)) == []


def test_a_network_that_overflows_is_loaded_in_a_wider_precision(folder, monkeypatch):
    """As float16 on a card; here the CPU computes in it, and the network overflows in it as long as it may."""
    monkeypatch.setattr("webui.engine.stock.choose_dtype", lambda *_: torch.float16)
    engine = EngineManager(folder, Settings)
    engine.warm_up()
    dtypes, request = [], dataclasses.replace(REQUEST, steps=1)

    def overflow(unet, _inputs, output):
        dtypes.append(unet.dtype)
        return (output[0] * float("nan"), *output[1:]) if unet.dtype == torch.float16 else None

    handle = nn.modules.module.register_module_forward_hook(
        lambda module, *given: overflow(module, *given) if type(module).__name__ == "UNet2DConditionModel" else None
    )
    try:
        events = run(engine, request)
        assert notices(events) == ["The model overflowed in half precision; the picture is tried again in float32."]
        assert set(dtypes) == {torch.float16, torch.float32}
        assert notices(run(engine, request)) == []
    finally:
        handle.remove()


# --- the loop itself, with a stand-in for the engine


def image(index):
    return ImageReady(index=index, image=Image.new("RGB", (1, 1)), seed=index, infotext="")


def attempts(script, request=REQUEST, *, widen=lambda: "", offered=frozenset(Rung)):
    """Runs `script`: for each attempt the events, then an error or None. Returns events, calls and how often freed."""
    calls, freed = [], []
    queue = iter(script)

    def once(economy, first, phases):
        calls.append((economy.rungs, first))
        events, error = next(queue)
        with phases("denoise"):
            yield from events
            if error is not None:
                raise error

    made, walk = (
        [],
        persevere(
            request,
            once,
            start_batch=0,
            economy=NOTHING_SAVED,
            offered=offered,
            release=lambda: freed.append(1),
            widen=widen,
        ),
    )
    while True:
        try:
            made.append(next(walk))
        except StopIteration as end:
            return made, calls, len(freed), end.value


STARTED = Started(total_images=4, total_steps=4)
FULL = torch.OutOfMemoryError("CUDA out of memory")


def test_finished_batches_are_not_made_again_and_nothing_is_told_twice():
    request = Txt2Img(batch_size=2, batch_count=2)
    step = Step(index=1, total=4, batch=1)
    hint = Notice(text="a hint")
    made, calls, freed, sufficed = attempts(
        [
            ([STARTED, hint, image(0), image(1), step, image(2)], FULL),
            ([STARTED, hint, step, image(2), image(3)], None),
        ],
        request,
    )
    assert [first for _, first in calls] == [0, 1]
    assert [event.index for event in made if isinstance(event, ImageReady)] == [0, 1, 2, 3]
    assert sum(isinstance(event, Started) for event in made) == 1
    assert made.count(hint) == 1
    assert freed == 1
    assert sufficed == Economy(frozenset({Rung.FREE}))


def test_a_failure_between_two_batches_goes_on_with_the_next():
    request = Txt2Img(batch_size=1, batch_count=3)
    first = [STARTED, Step(index=1, total=3, batch=0), image(0)]
    _, calls, _, _ = attempts([(first, FULL), ([STARTED], None)], request)
    assert [batch for _, batch in calls] == [0, 1]


def test_each_measure_is_tried_once_and_then_it_is_over():
    everything = [([], FULL)] * 10
    with pytest.raises(OutOfMemory, match="64x64"):
        attempts(everything)
    _, calls, freed, _ = attempts([([], FULL)] * 3 + [([], None)])
    assert [len(rungs) for rungs, _ in calls] == [0, 1, 2, 3]
    assert freed == 3


def test_other_errors_come_through():
    with pytest.raises(RuntimeError, match="shape"):
        attempts([([], RuntimeError("shape mismatch"))])


def test_each_wider_precision_is_tried_and_then_the_error_is_told():
    wider = iter(["bfloat16", "float32", ""])
    with pytest.raises(Overflow, match="NaN"):
        attempts([([], Overflow("NaN"))] * 3, widen=lambda: next(wider))
    wider = iter(["bfloat16"])
    made, _, _, sufficed = attempts([([], Overflow("NaN")), ([], None)], widen=lambda: next(wider))
    assert [event.text for event in made] == [
        "The model overflowed in half precision; the picture is tried again in bfloat16."
    ]
    assert sufficed == NOTHING_SAVED


def test_the_tensors_of_a_failed_attempt_are_gone_before_the_next():
    import gc
    import weakref

    alive = []

    class Large:
        pass

    def once(economy, _first, phases):
        large = Large()
        if not economy.rungs:
            alive.append(weakref.ref(large))
            raise FULL
        gc.collect()
        assert alive[0]() is None
        yield STARTED

    walk = persevere(
        REQUEST,
        once,
        start_batch=0,
        economy=NOTHING_SAVED,
        offered=frozenset(Rung),
        release=lambda: None,
        widen=lambda: "",
    )
    assert len(list(walk)) == 2
