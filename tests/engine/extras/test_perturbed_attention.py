"""Perturbed-attention guidance: diffusers' perturbed network, the paper's equation, and no trace."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from webui.core.events import ImageReady
from webui.core.requests import Extras, Guidance, Txt2Img
from webui.engine.conditioning.words import Conditioning, PromptPlan, Until
from webui.engine.extras.perturbed_attention import perturbed
from webui.engine.guidance import Guided

TIMESTEP = torch.tensor([500.0])


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plan():
    prompt, negative = (Conditioning(states=noise(1, 77, 16, seed=seed)) for seed in (1, 2))
    return PromptPlan(prompts=((((Until(0, prompt),)), 1.0),), negative=(Until(0, negative),))


def layers(unet):
    return [block.attn1 for attention in unet.mid_block.attentions for block in attention.transformer_blocks]


def predicted(unet, cfg_scale, pag_scale):
    guided = Guided(unet, plan(), cfg_scale=cfg_scale, guidance=Guidance(), evaluations=10, pag_scale=pag_scale)
    return guided(noise(2, 4, 8, 8), TIMESTEP, 5.0)


def test_the_perturbed_network_is_diffusers(tiny):
    from diffusers.models.attention_processor import PAGIdentitySelfAttnProcessor2_0

    x, states = noise(1, 4, 8, 8), noise(1, 77, 16, seed=1)
    with perturbed(tiny.unet):
        got = tiny.unet(x, TIMESTEP, states).sample
    before = [(layer, layer.processor) for layer in layers(tiny.unet)]
    for layer, _ in before:
        layer.set_processor(PAGIdentitySelfAttnProcessor2_0())
    # Its first half is the plain network, its second the perturbed one.
    plain, wanted = tiny.unet(x.repeat(2, 1, 1, 1), TIMESTEP, states.repeat(2, 1, 1)).sample.chunk(2)
    for layer, own in before:
        layer.set_processor(own)
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(got, plain, atol=1e-5)


@pytest.mark.parametrize("cfg_scale", [7.0, 1.0])
def test_guidance_adds_the_way_from_the_perturbed_answer(tiny, cfg_scale):
    words = plan().at(0)
    states = words.prompts[0].conditioning.states.repeat(2, 1, 1)
    x = noise(2, 4, 8, 8)
    plain = predicted(tiny.unet, cfg_scale, 0.0)
    answer = tiny.unet(x, TIMESTEP, states).sample
    with perturbed(tiny.unet):
        worse = tiny.unet(x, TIMESTEP, states).sample
    got = predicted(tiny.unet, cfg_scale, 3.0)
    torch.testing.assert_close(got.guided, plain.guided + 3 * (answer - worse), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got.negative, plain.negative)


def test_it_leaves_no_trace(run, tiny):
    request = Txt2Img(prompt="a circle", steps=2, width=64, height=64, seed=7)
    processors = [layer.processor for layer in layers(tiny.unet)]

    def picture(extras):
        (made,) = [e for e in run(dataclasses.replace(request, extras=extras)) if isinstance(e, ImageReady)]
        return made.image.tobytes()

    before = picture(Extras())
    assert picture(Extras(pag_scale=20.0)) != before
    assert picture(Extras()) == before
    with pytest.raises(ZeroDivisionError), perturbed(tiny.unet):
        raise ZeroDivisionError
    assert [layer.processor for layer in layers(tiny.unet)] == processors
