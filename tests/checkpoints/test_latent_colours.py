"""The map from latents to colours that is fitted to an autoencoder."""

from types import SimpleNamespace

import pytest
import torch

from webui.checkpoints.latent_colours import fit_colours
from webui.hardware import torchvision_operators

SHIFT, SCALE = 0.25, 2.0


@pytest.fixture(scope="module")
def diffusers():
    torchvision_operators.declare()
    import diffusers

    return diffusers


@pytest.fixture
def vae(diffusers):
    """Random, but that its decoder's convolutions look at one pixel: others of this size paint hardly what they see."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = diffusers.AutoencoderKL(
            block_out_channels=(4, 4),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=2,
            latent_channels=6,
            scaling_factor=SCALE,
            shift_factor=SHIFT,
        ).eval()
    for weight in vae.decoder.parameters():
        if weight.shape[2:] == (3, 3):
            weight.data *= 3 * torch.nn.functional.pad(torch.ones(1, 1), (1, 1, 1, 1))
    return vae


def shown(mapping, latents):
    weights, bias = torch.tensor(mapping.weights), torch.tensor(mapping.bias)
    return torch.einsum("nchw,cd->ndhw", latents, weights) + bias[:, None, None]


def test_a_linear_decoder_is_found_exactly(vae, monkeypatch):
    mixing = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))

    def decode(latents, return_dict):
        squares = latents.repeat_interleave(2, -1).repeat_interleave(2, -2)
        return (torch.einsum("nchw,dc->ndhw", squares, mixing) + 0.5,)

    monkeypatch.setattr(vae, "decode", decode)
    mapping = fit_colours(SimpleNamespace(components={"vae": vae}))

    assert torch.allclose(torch.tensor(mapping.weights), mixing.T / SCALE, atol=0.01)
    assert torch.allclose(torch.tensor(mapping.bias), mixing.sum(1) * SHIFT + 0.5, atol=0.02)


def test_colours_follow_the_decoded_picture(vae):
    before = torch.random.get_rng_state()
    mapping = fit_colours(SimpleNamespace(components={"vae": vae}))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert mapping == fit_colours(SimpleNamespace(components={"vae": vae}))

    latents = torch.randn(1, 6, 4, 4, generator=torch.Generator().manual_seed(9)).repeat_interleave(4, -1)
    latents = latents.repeat_interleave(4, -2)
    with torch.inference_mode():
        picture = vae.decode(latents / SCALE + SHIFT).sample
    small = torch.nn.functional.adaptive_avg_pool2d(picture, 16)
    rough = shown(mapping, latents)
    plain = [(each - each.mean((2, 3), keepdim=True)).flatten() for each in (small, rough)]
    assert torch.corrcoef(torch.stack(plain))[0, 1] > 0.6


def test_other_autoencoders_have_no_map(diffusers):
    assert fit_colours(SimpleNamespace(components={"vae": diffusers.AutoencoderTiny(latent_channels=4)})) is None
    assert fit_colours(SimpleNamespace(components={})) is None
