"""The table of names against diffusers' own converters, and against names known from Stable Diffusion 1's file."""

import pytest
import torch

from webui.checkpoints import keymap
from webui.hardware import torchvision_operators

SD1_UNET = keymap.UNetShape(layers=(2, 2, 2, 2), attention=(True, True, True, False))
SHAPES = {
    "two levels, one layer": ([8, 16], [True, False], 1),
    "three levels, attention in the middle": ([8, 16, 16], [False, True, False], 1),
    "three levels, attention everywhere": ([8, 8, 16], [True, True, True], 2),
    "four levels as SD1": ([8, 8, 16, 16], [True, True, True, False], 2),
    "one level": ([8], [True], 3),
}


def unet_config(widths, attention, layers):
    down = ["CrossAttnDownBlock2D" if level else "DownBlock2D" for level in attention]
    return {
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": widths,
        "down_block_types": down,
        "up_block_types": [kind.replace("Down", "Up") for kind in reversed(down)],
        "layers_per_block": layers,
        "cross_attention_dim": 8,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    }


def vae_config(widths, layers):
    return {
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "layers_per_block": layers,
        "norm_num_groups": 4,
    }


def to_original(state, table, prefix):
    names = keymap.inverse(table)
    renamed = {}
    for key, weight in state.items():
        name = keymap.translate(key, names)
        assert name is not None, key
        shaped = (
            weight[..., None, None] if prefix == keymap.VAE_PREFIX and keymap.is_vae_attention_weight(key) else weight
        )
        renamed[prefix + name] = shaped
    assert len(renamed) == len(state)
    return renamed


def assert_identical(got, wanted):
    assert got.keys() == wanted.keys()
    for key, weight in wanted.items():
        assert torch.equal(got[key], weight), key


@pytest.mark.parametrize("name", SHAPES)
def test_unet_names_are_those_that_diffusers_converts(name):
    torchvision_operators.declare()
    from diffusers import UNet2DConditionModel
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    config = unet_config(*SHAPES[name])
    state = UNet2DConditionModel(**config).state_dict()
    original = to_original(state, keymap.unet_table(keymap.UNetShape.from_config(config)), keymap.UNET_PREFIX)

    assert_identical(convert_ldm_unet_checkpoint(original, config), state)


@pytest.mark.parametrize(("widths", "layers"), [([8, 8], 1), ([8, 8, 16], 2), ([8, 8, 16, 16], 2), ([8], 1)])
def test_vae_names_are_those_that_diffusers_converts(widths, layers):
    torchvision_operators.declare()
    from diffusers import AutoencoderKL
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    config = vae_config(widths, layers)
    state = AutoencoderKL(**config).state_dict()
    original = to_original(state, keymap.vae_table(keymap.VaeShape.from_config(config)), keymap.VAE_PREFIX)

    assert_identical(convert_ldm_vae_checkpoint(original, config), state)


def test_layers_may_differ_between_levels():
    """diffusers' converter knows one number only, so the network's own names are the reference."""
    torchvision_operators.declare()
    from diffusers import UNet2DConditionModel

    config = unet_config([8, 16], [True, False], [1, 2])
    table = keymap.unet_table(keymap.UNetShape.from_config(config))
    state = UNet2DConditionModel(**config).state_dict()

    original = to_original(state, table, "")

    assert {keymap.translate(key, table) for key in original} == set(state)


@pytest.mark.parametrize(
    ("original", "diffusers"),
    [
        ("time_embed.2.bias", "time_embedding.linear_2.bias"),
        ("input_blocks.1.0.in_layers.0.weight", "down_blocks.0.resnets.0.norm1.weight"),
        (
            "input_blocks.5.1.transformer_blocks.0.attn2.to_k.weight",
            "down_blocks.1.attentions.1.transformer_blocks.0.attn2.to_k.weight",
        ),
        ("input_blocks.3.0.op.weight", "down_blocks.0.downsamplers.0.conv.weight"),
        ("middle_block.1.proj_in.weight", "mid_block.attentions.0.proj_in.weight"),
        ("output_blocks.2.1.conv.bias", "up_blocks.0.upsamplers.0.conv.bias"),
        ("output_blocks.5.2.conv.weight", "up_blocks.1.upsamplers.0.conv.weight"),
        ("output_blocks.11.1.proj_out.weight", "up_blocks.3.attentions.2.proj_out.weight"),
        ("out.2.weight", "conv_out.weight"),
    ],
)
def test_names_of_the_published_unet(original, diffusers):
    table = keymap.unet_table(SD1_UNET)

    assert keymap.translate(original, table) == diffusers
    assert keymap.translate(diffusers, keymap.inverse(table)) == original


def test_an_unknown_name_has_no_translation():
    table = keymap.unet_table(SD1_UNET)

    assert keymap.translate("input_blocks.12.0.op.weight", table) is None
    assert keymap.translate("", table) is None


def test_names_from_before_diffusers_0_17():
    modern = "encoder.mid_block.attentions.0.to_out.0.weight"

    assert keymap.modern_vae_key("encoder.mid_block.attentions.0.proj_attn.weight") == modern
    assert (
        keymap.modern_vae_key("decoder.mid_block.attentions.0.query.bias") == "decoder.mid_block.attentions.0.to_q.bias"
    )
    assert keymap.modern_vae_key(modern) == modern
