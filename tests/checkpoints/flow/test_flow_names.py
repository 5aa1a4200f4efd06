"""The names of flow models' weights against diffusers' own conversion, at the width that it knows."""

import pytest
import torch

from webui.checkpoints.flow_names import chroma_names, flux_names, sd3_names, t5_name

# diffusers cuts FLUX.1's single blocks at this width only; columns can be few.
WIDTH = 3072
CONFIG = {"num_layers": 2, "num_single_layers": 1, "approximator_layers": 2}
ROWS = {"qkv": 3 * WIDTH, "linear1": 7 * WIDTH}


def file_of(names, skipped=()):
    """A file of numbered rows with all that `names` knows, in two columns."""
    found = {}
    for number, key in enumerate(names.table):
        rows = next((count for end, count in ROWS.items() if key.endswith(end)), 4)
        scale = key.endswith(("_norm",)) or ".norms." in key
        parameters = ("",) if key == "pos_embed" else (".scale",) if scale else (".weight", ".bias")
        for parameter in parameters:
            if not any(part in key for part in skipped):
                found[key + parameter] = torch.arange(rows * 2.0).reshape(rows, 2) + number
    return found


def ours(names, weights):
    made = {}
    for key, weight in weights.items():
        targets, swapped = names.own(key)
        if swapped:
            weight = torch.cat(weight.chunk(2)[::-1])
        rows = [WIDTH] * (len(targets) - 1)
        made |= dict(zip(targets, weight.split([*rows, len(weight) - sum(rows)]), strict=True))
    return made


@pytest.mark.parametrize(
    ("names", "convert", "skipped"),
    [
        (
            sd3_names(CONFIG),
            "convert_sd3_transformer_checkpoint_to_diffusers",
            ("joint_blocks.1.context_block.attn.proj", "joint_blocks.1.context_block.mlp"),
        ),
        (flux_names(CONFIG), "convert_flux_transformer_checkpoint_to_diffusers", ()),
        (
            chroma_names(CONFIG),
            "convert_chroma_transformer_checkpoint_to_diffusers",
            ("_mod.lin", "modulation", "vector_in", "time_in", "guidance_in"),
        ),
    ],
    ids=["sd3", "flux", "chroma"],
)
def test_names_and_rows_are_those_of_diffusers_conversion(names, convert, skipped):
    from webui.hardware import torchvision_operators

    torchvision_operators.declare()
    from diffusers.loaders import single_file_utils

    weights = file_of(names, skipped)
    wanted = getattr(single_file_utils, convert)(dict(weights))
    got = ours(names, weights)
    if "pos_embed.pos_embed" in got:
        norms = {name for name in got if ".norm_" in name or "norm_added" in name}
        got = {name: weight for name, weight in got.items() if not (name in norms and name.endswith(".bias"))}

    assert got.keys() == wanted.keys()
    assert all(torch.equal(got[name], weight) for name, weight in wanted.items())


def test_an_unknown_weight_keeps_its_name():
    assert flux_names(CONFIG).own("double_blocks.0.img_attn.ip_adapter.weight") == (
        ("double_blocks.0.img_attn.ip_adapter.weight",),
        False,
    )


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("enc.blk.11.attn_rel_b.weight", "encoder.block.11.layer.0.SelfAttention.relative_attention_bias.weight"),
        ("enc.blk.0.ffn_gate.weight", "encoder.block.0.layer.1.DenseReluDense.wi_0.weight"),
        ("token_embd.weight", "shared.weight"),
        ("encoder.final_layer_norm.weight", "encoder.final_layer_norm.weight"),
    ],
)
def test_llama_cpps_names_for_t5_are_known(key, name):
    assert t5_name(key) == name
