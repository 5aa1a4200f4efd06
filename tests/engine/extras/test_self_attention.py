"""Self-attention guidance against diffusers' parts of it, the equations, and no trace."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from webui.core.events import ImageReady
from webui.core.requests import Extras, Guidance, Txt2Img
from webui.engine.conditioning.words import Conditioning, PromptPlan, Until
from webui.engine.denoiser import scalings
from webui.engine.extras.self_attention import blurred, degraded, watched
from webui.engine.guidance import Guided

TIMESTEP = torch.tensor([500.0])


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_blur_keeps_what_is_flat_and_spreads_a_point():
    flat = torch.full((1, 2, 6, 12), 3.0)
    torch.testing.assert_close(blurred(flat), flat)
    point = torch.zeros(1, 1, 17, 17)
    point[..., 8, 8] = 1
    weights = torch.exp(-0.5 * torch.arange(-4.0, 5.0) ** 2)
    weights /= weights.sum()
    torch.testing.assert_close(blurred(point)[0, 0, 4:13, 4:13], weights[:, None] * weights[None])


def test_the_mask_is_the_attention_that_diffusers_computes(tiny):
    layer = tiny.unet.mid_block.attentions[0].transformer_blocks[0].attn1
    seen = []
    handle = layer.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    with watched(tiny.unet) as looks:
        tiny.unet(noise(2, 4, 8, 6), TIMESTEP, noise(2, 77, 16))
    handle.remove()
    query, key = (layer.head_to_batch_dim(project(seen[0])) for project in (layer.to_q, layer.to_k))
    weights = layer.get_attention_scores(query, key).unflatten(0, (2, layer.heads))
    wanted = (weights.mean(1).sum(1) > 1).float().reshape(2, 1, 4, 3)
    assert torch.equal(looks.mask(), wanted)
    assert 0 < wanted.mean() < 1


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "flow"])
def test_the_estimate_is_blurred_and_the_noise_stays(kind):
    sigma, clean, drawn = 2.0, noise(1, 4, 12, 12), noise(1, 4, 12, 12, seed=1)
    c_skip, c_out, c_in = scalings(sigma, kind)
    x = clean + sigma * drawn
    answer = (clean - c_skip * x) / c_out
    got = degraded(x * c_in, answer, torch.ones(1, 1, 3, 3), sigma, kind)
    torch.testing.assert_close(got / c_in, blurred(clean) + sigma * drawn, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(degraded(x * c_in, answer, torch.zeros(1, 1, 3, 3), sigma, kind), x * c_in)


def test_guidance_adds_the_way_from_the_degraded_answer(tiny):
    prompt, negative = (Conditioning(states=noise(1, 77, 16, seed=seed)) for seed in (1, 2))
    plan = PromptPlan(prompts=((((Until(0, prompt),)), 1.0),), negative=(Until(0, negative),))
    x = noise(2, 4, 8, 8)

    def predicted(scale):
        options = {"cfg_scale": 7.0, "guidance": Guidance(), "evaluations": 10, "prediction_type": "v_prediction"}
        return Guided(tiny.unet, plan, sag_scale=scale, **options)(x, TIMESTEP, 3.0)

    states = negative.states.repeat(2, 1, 1)
    with watched(tiny.unet) as looks:
        answer = tiny.unet(x, TIMESTEP, states).sample
    worse = tiny.unet(degraded(x, answer, looks.mask(), 3.0, "v_prediction"), TIMESTEP, states).sample
    plain = predicted(0.0)
    got = predicted(2.0)
    torch.testing.assert_close(got.guided, plain.guided + 2 * (answer - worse), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(got.guided, plain.guided, atol=1e-3)
    assert torch.equal(got.negative, plain.negative)


def test_it_leaves_no_trace(run, tiny):
    request = Txt2Img(prompt="a circle", steps=2, width=64, height=64, seed=7)

    def picture(extras):
        (made,) = [e for e in run(dataclasses.replace(request, extras=extras)) if isinstance(e, ImageReady)]
        return made.image.tobytes()

    before = picture(Extras())
    assert picture(Extras(sag_scale=5.0)) != before
    assert picture(Extras()) == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in tiny.unet.modules())
