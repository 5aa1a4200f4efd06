"""Averaged weights get the names back that they lost; over every name of real layouts."""

from webui.checkpoints import keymap
from webui.checkpoints.containers.base import Header, TensorHeader
from webui.checkpoints.containers.ema import dotted, with_plain_names

LEAVES = (
    "weight",
    "transformer_blocks.0.attn1.to_q.weight",
    "transformer_blocks.10.attn2.to_out.0.bias",
    "transformer_blocks.9.ff.net.0.proj.weight",
    "transformer_blocks.0.ff.net.2.bias",
    "transformer_blocks.0.norm3.weight",
    "proj_in.weight",
    "norm.bias",
)


def unet_names():
    shape = keymap.UNetShape(layers=(2, 2, 2, 2), attention=(True, True, True, False))
    for module in keymap.unet_table(shape).keys() - {"label_emb"}:
        leaves = LEAVES if module.endswith(".1") and "block" in module else ("weight", "bias")
        yield from (f"diffusion_model.{module}.{leaf}" for leaf in leaves)
    yield "diffusion_model.label_emb.0.0.weight"
    yield "diffusion_model.label_emb.0.2.bias"


def test_every_name_comes_back():
    names = set(unet_names())
    assert {dotted(name.replace(".", "")) for name in names} == names


def header(*names, tmp_path):
    return Header(path=tmp_path / "a", tensors={name: TensorHeader("F32", (1,)) for name in names}, metadata={})


def test_averaged_weights_stand_in_only_where_there_are_no_others(tmp_path):
    average = "model_ema.diffusion_modelout2weight"
    alone = with_plain_names(header(average, "model_ema.decay", "first_stage_model.x", tmp_path=tmp_path))

    assert set(alone.tensors) == {"model.diffusion_model.out.2.weight", "model_ema.decay", "first_stage_model.x"}
    assert alone.stored == {"model.diffusion_model.out.2.weight": average}

    both = header(average, "model.diffusion_model.out.2.weight", tmp_path=tmp_path)
    assert with_plain_names(both) is both


def test_what_is_no_unet_weight_is_left_alone():
    assert dotted("num_updates") is None
