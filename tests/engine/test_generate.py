"""The recipe, on a tiny model with random weights."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from webui.core.catalogue import SCHEDULE_TYPES
from webui.core.errors import UserError
from webui.core.events import Finished, ImageReady, Started, Step
from webui.core.infotext import parse_infotext
from webui.core.ports import Control
from webui.core.requests import Guidance, Img2Img, NoiseSource, ResizeMode, SamplerOptions, ScheduleOptions, Txt2Img
from webui.engine.generate import generate

REQUEST = Txt2Img(prompt="a (red:1.2) circle", negative_prompt="blue", steps=4, width=64, height=64, seed=7)


def changed(request, **values):
    import dataclasses

    return dataclasses.replace(request, **values)


def pictures(events):
    return [event for event in events if isinstance(event, ImageReady)]


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def same(a, b):
    return a.size == b.size and a.mode == b.mode and a.tobytes() == b.tobytes()


def test_the_order_of_events(run):
    events = run(changed(REQUEST, batch_size=2, batch_count=2))
    kinds = [type(event) for event in events]
    assert kinds == [Started, *[Step] * 4, ImageReady, ImageReady, *[Step] * 4, ImageReady, ImageReady, Finished]
    assert events[0] == Started(total_images=4, total_steps=8, checkpoint="tiny", attention="test")
    steps = [event for event in events if isinstance(event, Step)]
    assert [step.index for step in steps] == list(range(1, 9))
    assert {step.total for step in steps} == {8}
    assert [step.batch for step in steps] == [0] * 4 + [1] * 4
    assert [event.index for event in pictures(events)] == [0, 1, 2, 3]
    assert [event.seed for event in pictures(events)] == [7, 8, 9, 10]
    assert {"encode", "denoise", "decode"} <= set(events[-1].seconds)
    assert all(event.image.size == (64, 64) for event in pictures(events))


# One of each way to draw noise and to guide; test_samplers has every sampler alone and in a batch.
@pytest.mark.parametrize("sampler", ["DPM++ 2M", "Euler a", "DPM++ 2M SDE", "DPM adaptive", "Euler CFG++"])
def test_a_picture_is_the_same_alone_and_in_a_batch(run, sampler):
    together = pictures(run(changed(REQUEST, batch_size=2, batch_count=2, sampler=sampler)))
    for event in together:
        alone = pictures(run(changed(REQUEST, seed=event.seed, sampler=sampler)))[0]
        # A kernel may add up in another order for another batch size, which can turn a rounding: one level of 255.
        difference = np.abs(np.asarray(alone.image, int) - np.asarray(event.image, int)).max()
        assert difference <= 1
    assert not same(together[0].image, together[1].image)


@pytest.mark.parametrize(
    ("sampler", "changes"),
    [
        ("Euler a", {"sampler_options": SamplerOptions(eta=0.5)}),
        ("Euler a", {"sampler_options": SamplerOptions(s_noise=0.9)}),
        ("Euler a", {"eta_noise_seed_delta": 31337}),
        ("Euler", {"sampler_options": SamplerOptions(s_churn=4.0)}),
        ("UniPC", {"sampler_options": SamplerOptions(order=1)}),
        ("Euler", {"schedule_options": ScheduleOptions(sgm_noise_multiplier=True)}),
        ("Euler", {"schedule_options": ScheduleOptions(discard_next_to_last=True)}),
        ("DPM++ 2M", {"schedule_options": ScheduleOptions(rho=3.0)}),
        ("DPM++ 2M", {"schedule_options": ScheduleOptions(sigma_max=5.0)}),
        ("Euler", {"guidance": Guidance(rescale=0.7)}),
        ("Euler", {"guidance": Guidance(skip_early=0.5)}),
        ("Euler", {"guidance": Guidance(skip_negative_below=15.0)}),
        ("DPM++ SDE", {"noise_source": NoiseSource.NV}),
    ],
)
def test_settings_reach_the_picture(run, sampler, changes):
    plain = pictures(run(changed(REQUEST, sampler=sampler)))[0]
    assert not same(plain.image, pictures(run(changed(REQUEST, sampler=sampler, **changes)))[0].image)


def test_a_sampler_that_looks_at_the_whole_batch_is_given_single_pictures(run):
    events = run(changed(REQUEST, sampler="DPM adaptive", batch_size=2, batch_count=2))
    assert events[0].total_steps == 4 * 4
    steps = [event for event in events if isinstance(event, Step)]
    assert [step.index for step in steps] == sorted(step.index for step in steps)
    assert steps[-1].index == steps[-1].total
    assert sorted({step.batch for step in steps}) == [0, 1]
    assert [event.index for event in pictures(events)] == [0, 1, 2, 3]


def test_start_batch_goes_on_where_it_was(run):
    request = changed(REQUEST, batch_count=3, steps=2)
    whole, rest = pictures(run(request)), pictures(run(request, start_batch=2))
    assert [event.index for event in rest] == [2]
    assert same(rest[0].image, whole[2].image)
    assert [event.index for event in run(request, start_batch=2) if isinstance(event, Step)] == [5, 6]


@pytest.mark.parametrize("schedule_type", SCHEDULE_TYPES)
def test_every_schedule_type_makes_as_many_steps_as_asked(run, schedule_type):
    events = run(changed(REQUEST, schedule_type=schedule_type, steps=3))
    assert sum(isinstance(event, Step) for event in events) == 3


def test_prompt_negative_and_scale_matter(run):
    base = pictures(run(REQUEST))[0].image
    assert same(base, pictures(run(REQUEST))[0].image)
    for other in ({"prompt": "a square"}, {"negative_prompt": "green"}, {"cfg_scale": 3.0}, {"prompt": "a red circle"}):
        assert not same(base, pictures(run(changed(REQUEST, **other)))[0].image)


def test_scale_one_leaves_the_negative_prompt_out_and_halves_the_work(run, tiny):
    rows = []
    handle = tiny.unet.register_forward_pre_hook(lambda module, arguments: rows.append(arguments[0].shape[0]))
    try:
        one = pictures(run(changed(REQUEST, cfg_scale=1.0)))[0].image
        other = pictures(run(changed(REQUEST, cfg_scale=1.0, negative_prompt="x")))[0].image
        run(REQUEST)
    finally:
        handle.remove()
    assert rows == [1] * 8 + [2] * 4
    assert same(one, other)


def test_the_infotext_says_what_was_asked(run):
    info = parse_infotext(pictures(run(changed(REQUEST, batch_size=2)))[1].infotext)
    assert info.prompt == REQUEST.prompt
    assert info.negative_prompt == "blue"
    assert info.pairs["Seed"] == "8"
    assert info.pairs["Model"] == "tiny"
    assert info.pairs["Model hash"] == "0123456789"
    assert info.pairs["Size"] == "64x64"


def test_skip_leaves_one_batch_out(bench):
    control = Control()
    events = []
    for event in generate(changed(REQUEST, batch_count=3), bench, control=control):
        events.append(event)
        if isinstance(event, Step) and event.index == 5:
            control.skip()
    assert [event.index for event in pictures(events)] == [0, 2]
    assert sum(isinstance(event, Step) and event.batch == 1 for event in events) == 1
    assert isinstance(events[-1], Finished)


def test_a_skip_that_came_after_the_last_step_does_not_reach_the_next_batch(bench):
    control = Control()
    events = []
    for event in generate(changed(REQUEST, batch_count=2), bench, control=control):
        events.append(event)
        if isinstance(event, ImageReady) and event.index == 0:
            control.skip()
    assert [event.index for event in pictures(events)] == [0, 1]


def test_closing_stops_at_once(bench, tiny):
    calls = []
    handle = tiny.unet.register_forward_pre_hook(lambda module, arguments: calls.append(1))
    try:
        events = generate(REQUEST, bench, control=Control())
        assert isinstance(next(events), Started)
        assert isinstance(next(events), Step)
        events.close()
    finally:
        handle.remove()
    assert len(calls) == 1


def test_gradients_stay_as_they_were_between_events(bench):
    for _ in generate(REQUEST, bench, control=Control()):
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()


def test_not_a_number_becomes_a_sentence(bench, tiny):
    handle = tiny.unet.register_forward_hook(lambda module, arguments, output: (output[0] * float("nan"),))
    try:
        with pytest.raises(UserError, match="not finite"):
            list(generate(REQUEST, bench, control=Control()))
    finally:
        handle.remove()


def test_previews_are_small_jpegs_that_change(run):
    previews = [event.preview() for event in run(changed(REQUEST, batch_size=2)) if isinstance(event, Step)]
    images = [Image.open(io.BytesIO(preview)) for preview in previews]
    assert all(image.format == "JPEG" for image in images)
    assert all(image.size == (128, 64) for image in images)
    assert previews[0] != previews[-1]


# ---- img2img --------------------------------------------------------------------------------------------------------


@pytest.fixture
def picture():
    rng = np.random.default_rng(1)
    small = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    return small.resize((96, 64), Image.Resampling.BICUBIC)


def img2img(picture, **values):
    base = {"prompt": "a circle", "steps": 10, "width": 64, "height": 64, "seed": 3, "init_image": png(picture)}
    return Img2Img(**(base | values))


def test_strength_decides_the_steps_and_how_far_it_goes(run, picture):
    counts, distances = [], []
    through_vae = pictures(run(img2img(picture, denoising_strength=0.0)))[0].image
    for strength in (0.0, 0.3, 0.75, 1.0):
        events = run(img2img(picture, denoising_strength=strength, sampler="Euler"))
        counts.append(sum(isinstance(event, Step) for event in events))
        assert events[0].total_steps == counts[-1]
        made = np.asarray(pictures(events)[0].image, float)
        distances.append(np.abs(made - np.asarray(through_vae, float)).mean())
    assert counts == [0, 4, 8, 10]
    assert distances[0] == 0
    assert min(distances[1:]) > 1


def test_strength_zero_is_the_vae_alone(run, picture, tiny):
    got = pictures(run(img2img(picture, denoising_strength=0.0)))[0].image
    resized = np.asarray(picture.resize((64, 64), Image.Resampling.LANCZOS), np.float32)
    pixels = torch.from_numpy(resized).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        wanted = tiny.vae.decode(tiny.vae.encode(pixels).latent_dist.mean).sample[0]
    wanted = ((wanted + 1) * 127.5).round().clamp(0, 255).permute(1, 2, 0).numpy()
    assert np.abs(np.asarray(got, float) - wanted).max() <= 1


def test_img2img_says_its_strength(run, picture):
    event = pictures(run(img2img(picture, denoising_strength=0.4, resize_mode=ResizeMode.CROP)))[0]
    assert parse_infotext(event.infotext).pairs["Denoising strength"] == "0.4"
