"""The processor against diffusers' own, in whole networks."""

import pytest
import torch

from webui.hardware import torchvision_operators
from webui.hardware.attention import apply_attention, head_sizes, patched
from webui.hardware.attention.chunked import attend
from webui.hardware.attention.selector import AttentionChoice

# The same sums in another order, through a few dozen layers in float32.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def unet():
    torchvision_operators.declare()
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=4,
    ).eval()


@pytest.fixture(scope="module")
def vae():
    torchvision_operators.declare()
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    return AutoencoderKL(block_out_channels=(8,), norm_num_groups=4).eval()


@pytest.fixture
def counted():
    """A choice that counts how often it is asked."""
    calls = []

    def counting(query, key, value, mask=None):
        calls.append(tuple(query.shape))
        return attend(query, key, value, mask)

    return AttentionChoice(name="counted", attend=counting, refused={}, seconds={}), calls


@torch.no_grad()
def run(unet, **options):
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(2, 4, 8, 8, generator=generator)
    states = torch.randn(2, 77, 8, generator=generator)
    return unet(latents, 500, states, **options).sample


def test_a_unet_gives_the_same_picture(unet, counted):
    choice, calls = counted
    with patched(unet, choice):
        got = run(unet)

    assert len(calls) == len(unet.attn_processors) > 0
    assert (got - run(unet)).abs().max() <= TOLERANCE


def test_a_mask_of_the_text_is_heeded(unet, counted):
    mask = torch.ones(2, 77)
    mask[:, 40:] = 0
    with patched(unet, counted[0]):
        got = run(unet, encoder_attention_mask=mask)

    assert (got - run(unet, encoder_attention_mask=mask)).abs().max() <= TOLERANCE
    assert (got - run(unet)).abs().max() > TOLERANCE


@torch.no_grad()
def test_a_vae_gives_the_same_picture(vae, counted):
    choice, calls = counted
    pixels = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(4))
    with patched(vae, choice):
        got = vae(pixels).sample

    assert len(calls) == 2
    assert (got - vae(pixels).sample).abs().max() <= TOLERANCE


def test_the_layers_own_processors_come_back_whatever_happens(unet, counted):
    before = unet.attn_processors

    def fail_inside():
        with patched(unet, counted[0]):
            assert all(unet.attn_processors[name] is not own for name, own in before.items())
            raise RuntimeError("spam")

    with pytest.raises(RuntimeError, match="spam"):
        fail_inside()

    assert all(unet.attn_processors[name] is own for name, own in before.items())


def test_applying_lasts(vae, counted):
    choice, _ = counted
    with patched(vae, choice):
        apply_attention(vae, choice)

        assert {processor.attend for processor in vae.attn_processors.values()} == {choice.attend}


def test_head_sizes_are_read_from_the_layers(unet, vae):
    assert head_sizes(unet) == {4, 8}
    assert head_sizes(vae) == {8}
