"""What guidance asks the UNet, how often, and what it makes of the answers."""

import math

import pytest
import torch
from torch import nn

from webui.core.requests import Guidance, SamplerOptions, ScheduleOptions
from webui.engine.conditioning.words import Conditioning, PromptPlan, Until
from webui.engine.denoiser import NetworkDenoiser
from webui.engine.guidance import Guided, rescaled
from webui.engine.samplers import SAMPLERS
from webui.engine.schedules import SCHEDULES, SigmaTable, make_sigmas

TIMESTEP = torch.tensor([500.0])


class Recorder(nn.Module):
    """A UNet that answers with the mean of a row's text plus the mean of its channels beyond four."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.rows = []
        self.added = []

    def forward(self, x, timestep, states, *, return_dict, added_cond_kwargs=None):
        self.rows.append(len(x))
        self.added.append(added_cond_kwargs)
        assert len(states) == len(x)
        beside = x[:, 4:].mean((1, 2, 3)) if x.shape[1] > 4 else 0
        value = states.mean((1, 2)) + beside
        return (x[:, :4] * 0 + value[:, None, None, None],)


def text(value, tokens=77, **more):
    return Conditioning(states=torch.full((1, tokens, 3), float(value)), **more)


def plan(*prompts, negative=None):
    negative = text(1) if negative is None else negative
    return PromptPlan(
        prompts=tuple((((Until(0, prompt),)), weight) for prompt, weight in prompts), negative=(Until(0, negative),)
    )


def guided(unet, plan, *, cfg_scale=7.0, evaluations=10, beside=None, edits=False, needs_negative=False, **guidance):
    return Guided(
        unet,
        plan,
        cfg_scale=cfg_scale,
        guidance=Guidance(**guidance),
        evaluations=evaluations,
        beside=beside,
        edits=edits,
        needs_negative=needs_negative,
    )


def value(prediction):
    return prediction.guided.mean().item(), prediction.negative.mean().item()


X = torch.randn(2, 4, 3, 3)


def test_prompt_and_negative_share_a_call():
    unet = Recorder()
    predict = guided(unet, plan((text(2), 1.0)))
    assert value(predict(X, TIMESTEP, 5.0)) == pytest.approx((1 + 7 * (2 - 1), 1))
    assert unet.rows == [4]


def test_at_scale_one_half_the_work_is_done():
    unet = Recorder()
    assert value(guided(unet, plan((text(2), 1.0)), cfg_scale=1.0)(X, TIMESTEP, 5.0)) == pytest.approx((2, 2))
    assert unet.rows == [2]
    # CFG++ needs the negative prompt's answer there too.
    needs = guided(unet, plan((text(2), 1.0)), cfg_scale=1.0, needs_negative=True)
    assert value(needs(X, TIMESTEP, 5.0)) == pytest.approx((2, 1))


def test_and_weighs_its_prompts():
    unet = Recorder()
    predict = guided(unet, plan((text(2), 1.0), (text(5), 0.5)), cfg_scale=3.0)
    assert value(predict(X, TIMESTEP, 5.0))[0] == pytest.approx(1 + 3 * (1 * (2 - 1) + 0.5 * (5 - 1)))
    assert unet.rows == [6]


def test_texts_of_other_lengths_are_asked_by_themselves_and_the_same_text_once():
    unet = Recorder()
    shared = text(2, tokens=154)
    predict = guided(unet, plan((shared, 1.0), (text(3), 1.0), (shared, 1.0)))
    assert value(predict(X, TIMESTEP, 5.0))[0] == pytest.approx(1 + 7 * (1 + 2 + 1))
    assert sorted(unet.rows) == [2, 4]


@pytest.mark.parametrize("extras", [{}, {"pag_scale": 2.0}, {"sag_scale": 0.7}], ids=str)
def test_texts_one_after_the_other_give_the_same(tiny, extras):
    """A row's sums may be ordered otherwise in a smaller batch: an answer's last bits, 13 times which scale 7 makes."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(2, 77, 16, generator=generator).split(1)
    words = plan((Conditioning(states=states[0]), 1.0), negative=Conditioning(states=states[1]))
    x = torch.randn(2, 4, 8, 8, generator=generator)
    calls = []
    handle = tiny.unet.register_forward_pre_hook(lambda _unet, inputs: calls.append(len(inputs[0])))

    def predicted(split):
        options = {"cfg_scale": 7.0, "guidance": Guidance(), "evaluations": 10, **extras}
        with torch.inference_mode():
            return Guided(tiny.unet, words, split=split, **options)(x, TIMESTEP, 5.0)

    together, apart = predicted(False), predicted(True)
    handle.remove()
    assert calls[0] == 4
    assert set(calls[len(calls) // 2 :]) == {2}
    assert (together.negative - apart.negative).abs().max() <= 1e-6
    assert (together.guided - apart.guided).abs().max() <= 3e-5


def test_words_change_with_the_evaluation():
    later = PromptPlan(prompts=(((Until(1, text(2)), Until(9, text(4))), 1.0),), negative=(Until(0, text(1)),))
    predict = guided(Recorder(), later, cfg_scale=2.0)
    assert [value(predict(X, TIMESTEP, 5.0))[0] for _ in range(3)] == pytest.approx([3, 3, 7])


def test_sdxls_conditions_follow_their_rows():
    unet = Recorder()
    more = {"pooled": torch.ones(1, 5), "time_ids": torch.zeros(1, 6)}
    predict = guided(unet, plan((text(2, **more), 1.0), negative=text(1, **more)))
    predict(X, TIMESTEP, 5.0)
    assert unet.added[0]["text_embeds"].shape == (4, 5)
    assert unet.added[0]["time_ids"].shape == (4, 6)


def test_early_steps_may_go_without_guidance():
    # A1111's rule: an evaluation i of n goes without while i / n is at most the share.
    unet = Recorder()
    predict = guided(unet, plan((text(2), 1.0)), evaluations=10, skip_early=0.2)
    got = [value(predict(X, TIMESTEP, 5.0))[0] for _ in range(5)]
    assert got == pytest.approx([2, 2, 2, 8, 8])
    assert unet.rows == [2, 2, 2, 4, 4]


def test_under_a_sigma_every_other_evaluation_goes_without_the_negative_prompt():
    unet = Recorder()
    predict = guided(unet, plan((text(2), 1.0)), skip_negative_below=2.0)
    for sigma in (5.0, 3.0, 1.9, 1.0, 0.5, 0.2):
        predict(X, TIMESTEP, sigma)
    assert unet.rows == [4, 4, 4, 2, 4, 2]


def test_edit_models_are_guided_three_ways():
    # Brooks et al. 2022, equation 3, with the answers text + picture (+ 10) for each of the three.
    unet = Recorder()
    picture = torch.full((1, 4, 3, 3), 10.0)
    predict = guided(unet, plan((text(2), 1.0)), cfg_scale=7.0, beside=picture, edits=True, image_scale=1.5)
    nothing, with_picture, with_both = 1.0, 11.0, 12.0
    wanted = nothing + 1.5 * (with_picture - nothing) + 7 * (with_both - with_picture)
    assert value(predict(X, TIMESTEP, 5.0))[0] == pytest.approx(wanted)
    assert sum(unet.rows) == 6


def test_channels_beside_the_latents_go_to_every_row():
    unet = Recorder()
    predict = guided(unet, plan((text(2), 1.0)), beside=torch.full((1, 5, 3, 3), 3.0))
    assert value(predict(X, TIMESTEP, 5.0)) == pytest.approx((4 + 7, 4))


def test_rescaling_takes_over_the_deviation_of_each_picture():
    # Lin et al. 2023, equations 15 and 16, written out with numpy's deviation (n - 1); float32: 1e-5.
    guided, answer = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(1)).unbind(0)
    guided = guided * torch.tensor([1.0, 3.0, 9.0]).view(3, 1, 1, 1)
    for share in (0.3, 0.7, 1.0):
        got = rescaled(guided, answer, share)
        for one, before, wanted in zip(got.numpy(), guided.numpy(), answer.numpy(), strict=True):
            factor = wanted.std(ddof=1) / before.std(ddof=1)
            assert one == pytest.approx(share * before * factor + (1 - share) * before, rel=1e-5, abs=1e-6)


@pytest.fixture(scope="module")
def table(alphas_cumprod):
    return SigmaTable.from_alphas(alphas_cumprod.tolist())


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_ends_finite_on_every_schedule(name, tiny, table):
    sampler = SAMPLERS[name]
    words = PromptPlan(
        prompts=(((Until(0, Conditioning(states=torch.randn(1, 8, 16))),), 1.0),),
        negative=(Until(0, Conditioning(states=torch.randn(1, 8, 16))),),
    )
    steps = 2
    # Of the levels DPM adaptive takes only the ends, and random weights make it take many steps between them.
    for schedule in ("Karras",) if sampler.one_by_one else ("Automatic", *SCHEDULES):
        sigmas = make_sigmas(
            schedule,
            table,
            steps,
            ScheduleOptions(),
            automatic=sampler.automatic,
            discard_next_to_last=sampler.discards_next_to_last,
        )
        predict = guided(
            tiny.unet, words, cfg_scale=sampler.scale(3.0), evaluations=9, needs_negative=sampler.plus_plus
        )
        denoiser = NetworkDenoiser(
            predict, tiny.prediction_type, timestep=table.timestep, sigmas=sigmas, device=torch.device("cpu")
        )
        with torch.inference_mode():
            x = sampler.start(torch.randn(1, 4, 4, 4), sigmas[0])
            run = sampler.run(denoiser, x, sigmas, lambda a, b: torch.randn(1, 4, 4, 4), SamplerOptions())
            end = list(run)[-1].x
        assert torch.isfinite(end).all(), schedule
        assert end.abs().max() < 50 * math.sqrt(sigmas[0]), schedule
