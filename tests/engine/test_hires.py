"""Hires fix: two passes, what stands between them, and everything that counts, skips and stops in both."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io

import numpy as np
import pytest
import torch
from PIL import Image

from webui.core.catalogue import LATENT_UPSCALERS
from webui.core.errors import InvalidRequest, UpscalerNotFound, UserError
from webui.core.events import Finished, ImageReady, Notice, Started, Step
from webui.core.infotext import infotext_to_request, parse_infotext
from webui.core.ports import Control
from webui.core.requests import Extras, HiresFix, Txt2Img
from webui.engine.generate import generate
from webui.engine.guidance import Guided
from webui.engine.latent_resize import enlarge_latents

REQUEST = Txt2Img(
    prompt="a circle",
    negative_prompt="blue",
    sampler="Euler",
    steps=3,
    width=64,
    height=64,
    seed=7,
    hires=HiresFix(enabled=True, scale=1.5, steps=2, denoising_strength=0.6),
)


def changed(request=REQUEST, *, hires=None, **values):
    return dataclasses.replace(request, hires=dataclasses.replace(request.hires, **hires or {}), **values)


def pictures(events):
    return [event.image for event in events if isinstance(event, ImageReady)]


def steps(events):
    return [event for event in events if isinstance(event, Step)]


def distance(one, other):
    return np.abs(np.asarray(one, int) - np.asarray(other, int)).max()


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def first(run):
    """The first pass's own picture."""
    return pictures(run(changed(hires={"enabled": False})))[0]


@pytest.mark.parametrize("upscaler", [*LATENT_UPSCALERS, "Lanczos"])
def test_the_picture_has_the_size_asked_for(run, upscaler):
    picture = pictures(run(changed(hires={"upscaler": upscaler, "steps": 1})))[0]
    assert picture.size == (96, 96)


@pytest.mark.parametrize(
    ("hires", "size"),
    [({"width": 128}, (128, 128)), ({"height": 80}, (80, 80)), ({"width": 80, "height": 128}, (80, 128))],
)
@pytest.mark.parametrize("upscaler", ["Latent", "Lanczos"])
def test_by_sides(run, upscaler, hires, size):
    assert pictures(run(changed(hires={"upscaler": upscaler, "steps": 1, **hires})))[0].size == size


@torch.inference_mode()
def through_vae(tiny, picture):
    pixels = torch.from_numpy(np.array(picture, dtype=np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
    made = tiny.vae.decode(tiny.vae.encode(pixels).latent_dist.mean).sample[0]
    return ((made + 1) * 127.5).round().clamp(0, 255).permute(1, 2, 0).numpy()


def test_without_denoising_it_is_the_upscaler_through_the_vae(run, tiny, first):
    events = run(changed(hires={"denoising_strength": 0.0, "upscaler": "Lanczos"}))
    enlarged = first.resize((96, 96), Image.Resampling.LANCZOS)
    assert distance(pictures(events)[0], through_vae(tiny, enlarged)) <= 1
    # Three of the first pass and one of the upscaler.
    assert len(steps(events)) == events[0].total_steps == 4


def test_what_is_cut_off_is_cut_off_about_the_middle(run, tiny, first):
    events = run(changed(hires={"denoising_strength": 0.0, "upscaler": "Nearest", "width": 64, "height": 128}))
    middle = first.resize((128, 128), Image.Resampling.NEAREST).crop((32, 0, 96, 128))
    assert distance(pictures(events)[0], through_vae(tiny, middle)) <= 1


def test_strength_is_how_far_it_goes(run):
    kept = np.asarray(pictures(run(changed(hires={"denoising_strength": 0.0})))[0], float)
    distances = [
        np.abs(np.asarray(pictures(run(changed(hires={"denoising_strength": strength})))[0], float) - kept).mean()
        for strength in (0.1, 0.5, 1.0)
    ]
    assert 0 < distances[0] < distances[1] < distances[2]


def test_each_of_its_settings_reaches_the_picture(run):
    plain = pictures(run(REQUEST))[0]
    same = {"sampler": "Euler", "schedule_type": "Automatic", "cfg_scale": 7.0, "prompt": "a circle"}
    assert pictures(run(changed(hires=same)))[0].tobytes() == plain.tobytes()
    for hires in (
        {"prompt": "a square"},
        {"negative_prompt": "red"},
        {"sampler": "Euler a"},
        {"schedule_type": "Karras"},
        {"cfg_scale": 2.0},
        {"steps": 4},
        {"upscaler": "Latent (nearest)"},
        {"token_merging": 0.5},
    ):
        assert distance(pictures(run(changed(hires=hires)))[0], plain) > 0, hires


def test_steps_are_walked_exactly_and_counted_over_both_passes(run):
    events = run(changed(batch_count=2))
    assert events[0] == Started(total_images=2, total_steps=10, checkpoint="tiny", attention="test")
    assert [step.index for step in steps(events)] == list(range(1, 11))
    assert [step.batch for step in steps(events)] == [0] * 5 + [1] * 5
    assert all(step.preview() for step in steps(events))
    assert len(pictures(events)) == 2


def test_an_upscaler_s_steps_count_for_each_picture(run):
    events = run(changed(batch_size=2, hires={"upscaler": "Lanczos"}))
    assert events[0].total_steps == 3 + 2 + 2
    assert [step.index for step in steps(events)] == list(range(1, 8))
    assert [step.preview is None for step in steps(events)] == [False] * 3 + [True] * 2 + [False] * 2


@pytest.mark.parametrize(
    ("sampler", "upscaler"), [("Euler a", "Lanczos"), ("DPM++ 2M SDE", "Latent"), ("DPM adaptive", "Latent")]
)
def test_a_picture_is_the_same_alone_and_in_a_batch(run, sampler, upscaler):
    hires = {"sampler": sampler, "upscaler": upscaler, "denoising_strength": 0.3}
    together = pictures(run(changed(batch_size=2, hires=hires)))
    for index, picture in enumerate(together):
        alone = pictures(run(changed(seed=7 + index, hires=hires)))[0]
        assert distance(alone, picture) <= 1
    assert distance(*together) > 1


def test_a_finished_picture_stands_for_the_first_pass(run, first):
    whole = run(changed(hires={"upscaler": "Lanczos"}))
    events = run(changed(hires={"upscaler": "Lanczos", "first_pass": png(first)}))
    assert pictures(events)[0].tobytes() == pictures(whole)[0].tobytes()
    assert whole[0].total_steps == 6
    assert events[0].total_steps == 3
    assert [step.index for step in steps(events)] == [1, 2, 3]
    texts = [event.infotext for event in (*events, *whole) if isinstance(event, ImageReady)]
    assert texts[0] == texts[1]


@torch.inference_mode()
def test_a_finished_picture_is_encoded_for_a_latent_upscaler(run, tiny, first):
    pixels = torch.from_numpy(np.array(first, dtype=np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
    latents = enlarge_latents(tiny.vae.encode(pixels).latent_dist.mean, (12, 12), "Latent (bicubic)")
    wanted = ((tiny.vae.decode(latents).sample[0] + 1) * 127.5).round().clamp(0, 255).permute(1, 2, 0).numpy()
    hires = {"upscaler": "Latent (bicubic)", "first_pass": png(first), "denoising_strength": 0.0}
    assert distance(pictures(run(changed(hires=hires)))[0], wanted) <= 1


def test_a_finished_picture_of_another_size_is_refused(run, first):
    with pytest.raises(InvalidRequest, match="64x64 and the request says 72x64"):
        run(changed(width=72, hires={"first_pass": png(first)}))


def test_an_unknown_upscaler_is_refused(run):
    with pytest.raises(UpscalerNotFound, match="absent"):
        run(changed(hires={"upscaler": "absent"}))


@pytest.fixture
def spoken(monkeypatch):
    """Which texts each evaluation of the network was guided by, by what a plan's line is made of."""
    heard = []
    original = Guided.__call__

    def call(self, x, timestep, sigma):
        heard.append((x.shape[-1] * 8, self._plan.at(self._evaluation).prompts[0].conditioning))
        return original(self, x, timestep, sigma)

    monkeypatch.setattr(Guided, "__call__", call)
    return heard


def switches(spoken, width):
    words = [conditioning for size, conditioning in spoken if size == width]
    return [index for index in range(1, len(words)) if words[index] is not words[index - 1]]


@pytest.mark.parametrize(
    ("prompt", "first_switches", "second_switches"),
    [
        # A text holds one step longer than its number says, as steps are counted from 0.
        ("a [cat:dog:0.5]", [3], []),
        ("a [cat:dog:1.5]", [], [3]),
        ("a [cat:dog:5]", [], [2]),  # four steps in the first pass, then the second's first
        ("a [cat:dog:2]", [3], []),
    ],
)
def test_prompt_editing_goes_on_counting(run, spoken, prompt, first_switches, second_switches):
    run(changed(prompt=prompt, steps=4, hires={"steps": 4}))
    assert (switches(spoken, 64), switches(spoken, 96)) == (first_switches, second_switches)


def test_skipping_works_in_both_passes_and_between_them(bench):
    for asked_at in (2, 4, 5):  # the first pass, the upscaler, the second pass
        control = Control()
        events = []
        for event in generate(changed(batch_count=2, hires={"upscaler": "Lanczos"}), bench, control=control):
            events.append(event)
            if isinstance(event, Step) and event.index == asked_at:
                control.skip()
        assert [event.index for event in events if isinstance(event, ImageReady)] == [1]
        assert [step.index for step in steps(events)] == [*range(1, asked_at + 1), *range(7, 13)]
        assert isinstance(events[-1], Finished)


def test_stopping_works_in_the_second_pass(bench, tiny):
    calls = []
    handle = tiny.unet.register_forward_pre_hook(lambda module, arguments: calls.append(arguments[0].shape[-1]))
    try:
        events = generate(REQUEST, bench, control=Control())
        while not (isinstance(event := next(events), Step) and event.index == 4):
            pass
        events.close()
    finally:
        handle.remove()
    assert calls == [8, 8, 8, 12]


def test_token_merging_is_the_pass_s_own(run):
    plain = pictures(run(REQUEST))[0]
    merged = pictures(run(changed(extras=Extras(token_merging=0.5), hires={"token_merging": 0.0})))[0]
    assert distance(plain, merged) > 0
    only_first = pictures(run(changed(extras=Extras(token_merging=0.5), hires={"enabled": False})))[0]
    assert distance(only_first, pictures(run(changed(hires={"enabled": False})))[0]) > 0


# ---- another bench for the second pass ------------------------------------------------------------------------------


def with_second_bench(bench, checkpoint, entered, **changes):
    @contextlib.contextmanager
    def lay_out():
        assert not torch.is_inference_mode_enabled()
        entered.append("in")
        yield dataclasses.replace(bench, checkpoint=checkpoint, weights="other", **changes)
        entered.append("out")

    return dataclasses.replace(bench, hires=lay_out)


def made(bench, request):
    return list(generate(request, bench, control=Control()))


def test_the_second_pass_is_another_checkpoint_s(bench, tiny):
    other = copy.deepcopy(tiny.unet)
    with torch.no_grad():
        other.conv_out.weight.mul_(1.5)
    calls, entered = [], []
    handles = [
        unet.register_forward_pre_hook(lambda module, arguments, name=name: calls.append(name))
        for name, unet in (("first", tiny.unet), ("second", other))
    ]
    laid_out = with_second_bench(
        bench,
        dataclasses.replace(tiny, unet=other),
        entered,
        notices=("It has two modules less.",),
        network_hashes=lambda: {"Lora hashes": "one: 11"},
    )
    try:
        events = made(laid_out, changed(batch_count=2))
    finally:
        for handle in handles:
            handle.remove()
    assert calls == (["first"] * 3 + ["second"] * 2) * 2
    assert entered == ["in", "out"] * 2
    assert distance(pictures(events)[0], pictures(made(bench, REQUEST))[0]) > 0
    assert [event.text for event in events if isinstance(event, Notice)] == ["It has two modules less."]
    text = next(event.infotext for event in events if isinstance(event, ImageReady))
    assert parse_infotext(text).pairs["Lora hashes"] == "one: 11"
    assert parse_infotext(text).pairs["Model"] == "tiny"


def test_the_finished_picture_is_decoded_by_the_second_checkpoint_s_vae(bench, tiny):
    vae = copy.deepcopy(tiny.vae)
    with torch.no_grad():
        vae.decoder.conv_out.bias.fill_(1.0)
    laid_out = with_second_bench(bench, dataclasses.replace(tiny, vae=vae), [])
    assert np.asarray(pictures(made(laid_out, REQUEST))[0], float).mean() > 180


def test_other_latents_are_refused(bench, tiny):
    laid_out = with_second_bench(bench, dataclasses.replace(tiny, scaling_factor=0.13), [])
    with pytest.raises(UserError, match="hires checkpoint 'tiny' works on latents of another kind"):
        made(laid_out, REQUEST)


def test_with_hires_fix_the_refiner_takes_over_in_the_second_pass_alone(bench, tiny):
    other, calls = copy.deepcopy(tiny.unet), []

    @contextlib.contextmanager
    def refine():
        yield dataclasses.replace(bench, checkpoint=dataclasses.replace(tiny, unet=other), weights="refiner")

    handles = [
        unet.register_forward_pre_hook(
            lambda module, arguments, name=name: calls.append((name, arguments[0].shape[-1]))
        )
        for name, unet in (("base", tiny.unet), ("refiner", other))
    ]
    try:
        request = changed(refiner="refiner", refiner_switch_at=0.5, hires={"steps": 4})
        made(dataclasses.replace(bench, refine=refine), request)
    finally:
        for handle in handles:
            handle.remove()
    assert calls == [("base", 8)] * 3 + [("base", 12)] * 3 + [("refiner", 12)]


@pytest.mark.parametrize("kind", ["inpaint", "edit"])
def test_models_that_take_more_than_latents_run_both_passes(bench, tiny, diffusers, kind):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        channels = {"inpaint": 9, "edit": 8}[kind]
        unet = diffusers.UNet2DConditionModel(**{**tiny.unet.config, "in_channels": channels})
    model = dataclasses.replace(tiny, input=kind, unet=unet.eval().requires_grad_(False))
    events = made(dataclasses.replace(bench, checkpoint=model), changed(batch_size=2))
    assert [picture.size for picture in pictures(events)] == [(96, 96)] * 2


# ---- infotext -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "hires",
    [
        {},
        {"width": 96, "height": 80, "scale": 2.0},
        {
            "prompt": "a, b: c",
            "negative_prompt": "d",
            "sampler": "DDIM",
            "schedule_type": "Karras",
            "cfg_scale": 4.5,
            "upscaler": "Nearest",
            "token_merging": 0.25,
        },
    ],
)
def test_the_text_of_a_picture_asks_for_it_again(run, hires):
    request = changed(hires=hires)
    event = next(event for event in run(request) if isinstance(event, ImageReady))
    pasted = infotext_to_request(parse_infotext(event.infotext), Txt2Img())
    assert pasted.warnings == ()
    assert pasted.request == request
