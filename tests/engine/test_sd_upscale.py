"""SD upscale: every pixel from a tile, steps over all tiles, one recipe a tile."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from webui.core.events import Finished, ImageReady, Notice, Started, Step
from webui.core.ports import Control
from webui.core.requests import Img2Img, SdUpscale, StartOptions, Variation
from webui.engine import sd_upscale as module
from webui.engine.sd_upscale import sd_upscale


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def gradient(width, height):
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([across, down, 255 - across], axis=2).round().astype(np.uint8))


def asked(width=60, height=40, **changes):
    request = Img2Img(
        init_image=png(gradient(width, height)),
        prompt="x",
        steps=4,
        width=64,
        height=64,
        denoising_strength=0.5,
        seed=7,
        sampler="Euler",
        start=StartOptions(exact_steps=True),
        sd_upscale=SdUpscale(upscaler="Lanczos", scale=2, overlap=16),
    )
    return dataclasses.replace(request, **changes)


@pytest.fixture
def go(bench):
    def go(request, control=None, **options):
        return list(sd_upscale(request, bench, control=control or Control(), **options))

    return go


def only(events, kind):
    return [event for event in events if isinstance(event, kind)]


def recipe_that_returns_tiles(asked_for, *, skips=()):
    """A `generate` whose pictures are the tiles as they came."""

    def generate(request, bench, *, control):
        asked_for.append(request)
        yield Started(total_images=request.batch_size, total_steps=1)
        yield Notice(text="said")
        yield Step(index=1, total=1, batch=0)
        if len(asked_for) not in skips:
            for index in range(request.batch_size):
                picture = Image.open(io.BytesIO(request.init_image)).convert("RGB")
                yield ImageReady(index=index, image=picture, seed=request.seed + index, infotext="")
        yield Finished(seconds={})

    return generate


@pytest.mark.parametrize(("width", "height"), [(60, 40), (33, 90), (10, 10), (64, 64)])
def test_tiles_that_change_nothing_make_the_enlarged_picture(go, monkeypatch, width, height):
    monkeypatch.setattr(module, "generate", recipe_that_returns_tiles([]))

    (ready,) = only(go(asked(width, height)), ImageReady)

    assert ready.image.size == (2 * width, 2 * height)
    expected = gradient(width, height).resize((2 * width, 2 * height), Image.Resampling.LANCZOS)
    assert np.abs(np.asarray(ready.image, float) - np.asarray(expected, float)).max() <= 1


def test_each_tile_is_a_request_of_its_own(go, monkeypatch):
    tiles = []
    monkeypatch.setattr(module, "generate", recipe_that_returns_tiles(tiles))

    events = go(asked(batch_size=2, batch_count=2))

    assert len(tiles) == 3 * 2 * 2  # 120 × 80 by 64 that share 16, twice
    assert {(each.width, each.height, each.batch_size, each.batch_count) for each in tiles} == {(64, 64, 2, 1)}
    assert all(not each.sd_upscale.upscaler for each in tiles)
    assert [each.seed for each in tiles] == [*range(7, 13), *range(9, 15)]
    assert [event.seed for event in only(events, ImageReady)] == [7, 8, 9, 10]
    assert [event.index for event in only(events, ImageReady)] == [0, 1, 2, 3]
    assert "SD upscale upscaler: Lanczos" in only(events, ImageReady)[0].infotext


def test_with_a_variation_pictures_differ_in_its_seed(go, monkeypatch):
    tiles = []
    monkeypatch.setattr(module, "generate", recipe_that_returns_tiles(tiles))
    go(asked(10, 10, batch_count=2, variation=Variation(seed=50, strength=0.3)))

    assert [(each.seed, each.variation.seed) for each in tiles] == [(7, 50), (7, 51)]


def test_steps_are_counted_over_everything(go):
    events = go(asked(batch_count=2))

    steps = only(events, Step)
    (started,) = only(events, Started)
    # One for Lanczos, then what strength leaves of the steps for each of six tiles, twice.
    assert [step.index for step in steps] == list(range(1, started.total_steps + 1))
    assert {step.total for step in steps} == {started.total_steps}
    assert (started.total_steps - 1) % 12 == 0
    assert started.total_images == len(only(events, ImageReady)) == 2
    assert steps[1].preview is not None
    assert isinstance(events[-1], Finished)


def test_a_job_goes_on_where_it_stopped(go, monkeypatch):
    monkeypatch.setattr(module, "generate", recipe_that_returns_tiles([]))
    whole, rest = go(asked(batch_count=2)), go(asked(batch_count=2), start_batch=1)

    assert only(rest, ImageReady)[0].index == 1
    assert only(rest, ImageReady)[0].infotext == only(whole, ImageReady)[1].infotext


def test_a_skipped_batch_makes_no_picture_and_the_next_is_made(go, monkeypatch):
    monkeypatch.setattr(module, "generate", recipe_that_returns_tiles([], skips=(2,)))
    events = go(asked(batch_count=2))

    assert [event.index for event in only(events, ImageReady)] == [1]


def test_stopping_ends_the_tile_at_work(bench, monkeypatch):
    closed = []

    def generate(request, bench, *, control):
        try:
            yield Step(index=1, total=2, batch=0)
        finally:
            closed.append(True)

    monkeypatch.setattr(module, "generate", generate)
    events = sd_upscale(asked(), bench, control=Control())
    while not (isinstance(event := next(events), Step) and event.index > 1):
        pass
    events.close()

    assert closed == [True]
