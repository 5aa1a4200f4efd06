"""Extras that patch a network or wrap a denoiser, each against an invariance or a reference; and what they leave."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from webui.core.events import ImageReady
from webui.core.requests import Extras, SamplerOptions, Txt2Img
from webui.engine.extras import adjusted, patched_unet, patched_vae
from webui.engine.extras.dynamic_thresholding import thresholded
from webui.engine.extras.freeu import amplified, damped

REQUEST = Txt2Img(prompt="a circle", negative_prompt="blue", steps=3, width=64, height=64, seed=7)
EVERYTHING = Extras(
    tiling=True, freeu_b1=1.3, freeu_b2=1.4, freeu_s1=0.9, freeu_s2=0.2, epsilon_scaling=1.01, mimic_scale=3.0
)


@pytest.fixture(scope="module")
def unet(diffusers):
    """Three widths, 8, 16 and 32, so that both of FreeU's stages are there."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return (
            diffusers.UNet2DConditionModel(
                in_channels=4,
                out_channels=4,
                block_out_channels=[8, 16, 32],
                down_block_types=["CrossAttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
                up_block_types=["UpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"],
                layers_per_block=1,
                cross_attention_dim=8,
                attention_head_dim=2,
                norm_num_groups=4,
            )
            .eval()
            .requires_grad_(False)
        )


def answer(unet, x):
    states = torch.linspace(-1, 1, 77 * 8).reshape(1, 77, 8).expand(len(x), -1, -1)
    return unet(x, torch.tensor([500.0]), states, return_dict=False)[0]


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_tiled_unet_answers_a_shifted_picture_with_a_shifted_answer(unet):
    x = noise(1, 4, 16, 16)
    with patched_unet(unet, Extras(tiling=True)):
        # By 4, which is what its two halvings leave as whole pixels.
        torch.testing.assert_close(answer(unet, x.roll(4, -1)), answer(unet, x).roll(4, -1), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(answer(unet, x.roll(4, -1)), answer(unet, x).roll(4, -1), atol=1e-3)


def test_a_tiled_vae_decodes_a_shifted_latent_to_a_shifted_picture(tiny):
    latents = noise(1, 4, 8, 8)
    with patched_vae(tiny.vae, Extras(tiling=True)):
        picture, shifted = (tiny.vae.decode(x).sample for x in (latents, latents.roll((3, 2), (-1, -2))))
    torch.testing.assert_close(shifted, picture.roll((24, 16), (-1, -2)), atol=1e-5, rtol=1e-5)


def test_left_and_right_edges_of_a_tiling_picture_match(run):
    def seam(extras):
        (made,) = [e for e in run(dataclasses.replace(REQUEST, extras=extras)) if isinstance(e, ImageReady)]
        pixels = np.asarray(made.image, dtype=float)
        inside = np.abs(np.diff(pixels, axis=1)).mean((0, 2))
        return np.abs(pixels[:, 0] - pixels[:, -1]).mean(), inside

    across, inside = seam(Extras(tiling=True))
    assert across <= inside.max()
    assert across < seam(Extras())[0]


def test_skip_features_are_filtered_as_diffusers_does():
    from diffusers.utils.torch_utils import fourier_filter

    for shape in ((2, 3, 8, 8), (1, 4, 6, 10), (1, 2, 5, 7)):
        x = noise(*shape)
        torch.testing.assert_close(damped(x, 0.2), fourier_filter(x, threshold=1, scale=0.2), atol=1e-6, rtol=1e-5)


def test_backbone_features_grow_where_their_mean_is_high():
    x = noise(2, 6, 5, 4)
    # The paper's factor, written out for a pixel at a time.
    wanted = x.clone()
    for picture in range(2):
        mean = x[picture].mean(0)
        for row in range(5):
            for column in range(4):
                alpha = 1 + 0.5 * (mean[row, column] - mean.min()) / (mean.max() - mean.min())
                wanted[picture, :3, row, column] *= alpha
    torch.testing.assert_close(amplified(x, 1.5), wanted)
    flat = torch.ones(1, 4, 2, 2)
    torch.testing.assert_close(amplified(flat, 1.5), flat)


def test_freeu_finds_both_stages(unet):
    joined = []
    handles = [
        resnet.norm1.register_forward_pre_hook(lambda _, arguments: joined.append(arguments[0]))
        for block in unet.up_blocks
        for resnet in block.resnets
    ]
    x = noise(1, 4, 16, 16)
    answer(unet, x)
    plain, joined = joined, []
    with patched_unet(unet, Extras(freeu_s2=0.5)):
        answer(unet, x)
    for handle in handles:
        handle.remove()
    # Backbones are 32, 32, 32, 16, 16 and 8 wide; four times the first width comes first, then two times.
    differs = [not torch.equal(before, after) for before, after in zip(plain, joined, strict=True)]
    assert differs.index(True) == 3
    assert torch.equal(plain[3][:, :16], joined[3][:, :16])
    torch.testing.assert_close(joined[3][:, 16:], damped(plain[3][:, 16:], 0.5))
    with patched_unet(unet, Extras(freeu_b1=1.2)):
        first = answer(unet, x)
    assert not torch.equal(first, answer(unet, x))


class Told:
    """A denoiser of fixed answers."""

    def __init__(self, guided, negative):
        self.answers = guided, negative

    def __call__(self, x, sigma):
        return self.answers[0]

    def both(self, x, sigma):
        return self.answers


def test_epsilon_scaling_divides_the_noise():
    x, guided, negative = (noise(2, 4, 3, 3, seed=seed) for seed in range(3))
    denoiser = adjusted(Told(guided, negative), Extras(epsilon_scaling=1.05), 7.0)
    for got, plain in zip(denoiser.both(x, 2.0), (guided, negative), strict=True):
        torch.testing.assert_close((x - got) / 2.0, (x - plain) / 2.0 / 1.05)
    assert torch.equal(denoiser(x, 2.0), denoiser.both(x, 2.0)[0])


def test_thresholding_gives_the_mimicked_scales_range():
    negative, towards = noise(2, 4, 8, 8), noise(2, 4, 8, 8, seed=1)
    guided, mimicked = negative + 20 * towards, negative + 5 * towards
    denoiser = adjusted(Told(guided, negative), Extras(mimic_scale=5.0), 20.0)
    got, beside = denoiser.both(guided, 1.0)
    assert beside is negative

    def reach(x):
        return (x - x.mean((2, 3), keepdim=True)).abs().amax((2, 3))

    centred = got - guided.mean((2, 3), keepdim=True)
    torch.testing.assert_close(centred.abs().amax((2, 3)), reach(mimicked))
    # Nothing was cut off, so each channel is the guided one on another scale.
    torch.testing.assert_close(
        centred / reach(mimicked)[..., None, None],
        (guided - guided.mean((2, 3), keepdim=True)) / reach(guided)[..., None, None],
    )
    # A lower percentile cuts: more pixels at the bound.
    cut = thresholded(guided, mimicked, 90.0) - guided.mean((2, 3), keepdim=True)
    at_bound = torch.isclose(cut.abs(), reach(mimicked)[..., None, None]).float().mean((2, 3))
    assert (at_bound >= 0.09).all()
    # The scale itself mimicked changes nothing, and neither does a flat channel.
    torch.testing.assert_close(thresholded(guided, guided, 100.0), guided)
    flat = torch.full((1, 1, 2, 2), 3.0)
    assert torch.equal(thresholded(flat, flat, 99.0), flat)


@pytest.mark.parametrize("field", ["tiling", "freeu_b2", "freeu_s2", "epsilon_scaling", "mimic_scale"])
def test_each_changes_the_picture_and_none_leaves_a_trace(run, tiny, field):
    request = dataclasses.replace(REQUEST, sampler="Euler a", sampler_options=SamplerOptions(eta=1.0))

    def picture(extras):
        (made,) = [e for e in run(dataclasses.replace(request, extras=extras)) if isinstance(e, ImageReady)]
        return made.image.tobytes()

    before = picture(Extras())
    assert picture(Extras(**{field: getattr(EVERYTHING, field)})) != before
    assert picture(Extras()) == before
    for network in (tiny.unet, tiny.vae):
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
        assert {getattr(module, "padding_mode", "zeros") for module in network.modules()} == {"zeros"}


def test_an_error_on_the_way_leaves_no_trace(unet):
    x = noise(1, 4, 16, 16)
    before = answer(unet, x)
    with pytest.raises(RuntimeError), patched_unet(unet, EVERYTHING):
        unet(x, torch.tensor([1.0]), torch.zeros(1, 2, 3))
    assert torch.equal(answer(unet, x), before)
