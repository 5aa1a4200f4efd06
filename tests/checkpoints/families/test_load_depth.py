"""The depth network of Stable Diffusion 2's depth model, from a single file and a folder, against what was written.

No published file is at hand here: the names of the original are those of MiDaS' dpt_depth.py and timm's hybrid ViT.
"""

import json

import pytest
import torch
from safetensors.torch import save_file

from webui.checkpoints import load_depth
from webui.checkpoints.detect import identify
from webui.checkpoints.load import load_checkpoint
from webui.checkpoints.load_depth import PREFIX, empty_depth, folder_depth, transformers_names, used
from webui.checkpoints.weights import open_weights
from webui.core.errors import UnsupportedModel
from webui.core.ports import CheckpointInfo
from webui.hardware import torchvision_operators

TINY = {
    "is_hybrid": True,
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 64,
    "backbone_out_indices": [0, 1, 2, 3],
    "backbone_featmap_shape": [1, 32, 4, 4],
    "neck_hidden_sizes": [32, 32, 16, 16],
    "reassemble_factors": [1, 1, 1, 0.5],
    "fusion_hidden_size": 8,
    "backbone_config": {
        "global_padding": "same",
        "layer_type": "bottleneck",
        "depths": [1, 2, 1],
        "hidden_sizes": [32, 32, 32],
        "embedding_size": 16,
        "num_groups": 4,
        "out_features": ["stage1", "stage2", "stage3"],
        "embedding_dynamic_padding": True,
    },
}


@pytest.fixture(scope="module")
def network():
    torchvision_operators.declare()
    from transformers import DPTConfig, DPTForDepthEstimation

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(8)
        return DPTForDepthEstimation(DPTConfig(**TINY)).eval().requires_grad_(False)


def joined(state, name):
    """Query, key and value of one layer as MiDaS keeps them."""
    return torch.cat([state[name.replace("query", part)] for part in ("query", "key", "value")])


def in_midas_names(state):
    """The weights as MiDaS writes them, level by level as its own modules nest, with what nobody asks for."""
    vit, scratch = "pretrained.model.", "scratch."
    bit = "dpt.embeddings.backbone.bit."
    named = {
        f"{vit}cls_token": state["dpt.embeddings.cls_token"],
        f"{vit}pos_embed": state["dpt.embeddings.position_embeddings"],
        f"{vit}head.weight": torch.zeros(10, 16),
    }

    def put(new, old):
        found = {new + key[len(old) :]: weight for key, weight in state.items() if key.startswith(old)}
        assert found, old
        named.update(found)

    put(f"{vit}patch_embed.backbone.stem.conv.", f"{bit}embedder.convolution.")
    put(f"{vit}patch_embed.backbone.stem.norm.", f"{bit}embedder.norm.")
    for stage, blocks in enumerate([1, 2, 1]):
        for block in range(blocks):
            put(
                f"{vit}patch_embed.backbone.stages.{stage}.blocks.{block}.",
                f"{bit}encoder.stages.{stage}.layers.{block}.",
            )
    put(f"{vit}patch_embed.proj.", "dpt.embeddings.projection.")
    put(f"{vit}norm.", "dpt.layernorm.")
    for layer in range(4):
        new, old = f"{vit}blocks.{layer}.", f"dpt.encoder.layer.{layer}."
        for kind in ("weight", "bias"):
            named[f"{new}attn.qkv.{kind}"] = joined(state, f"{old}attention.attention.query.{kind}")
        put(f"{new}attn.proj.", f"{old}attention.output.dense.")
        put(f"{new}mlp.fc1.", f"{old}intermediate.dense.")
        put(f"{new}mlp.fc2.", f"{old}output.dense.")
        put(f"{new}norm1.", f"{old}layernorm_before.")
        put(f"{new}norm2.", f"{old}layernorm_after.")
    for number in (3, 4):
        reassemble = "neck.reassemble_stage."
        put(f"pretrained.act_postprocess{number}.0.project.0.", f"{reassemble}readout_projects.{number - 1}.0.")
        put(f"pretrained.act_postprocess{number}.3.", f"{reassemble}layers.{number - 1}.projection.")
    put("pretrained.act_postprocess4.4.", "neck.reassemble_stage.layers.3.resize.")
    for number in (1, 2, 3, 4):
        fusion = f"neck.fusion_stage.layers.{4 - number}."
        put(f"{scratch}layer{number}_rn.", f"neck.convs.{number - 1}.")
        put(f"{scratch}refinenet{number}.out_conv.", f"{fusion}projection.")
        for unit in (1, 2):
            for conv in (1, 2):
                new = f"{scratch}refinenet{number}.resConfUnit{unit}.conv{conv}."
                put(new, f"{fusion}residual_layer{unit}.convolution{conv}.")
    put(f"{scratch}output_conv.", "head.head.")
    return named


def same(got, network):
    wanted = {key: weight for key, weight in network.state_dict().items() if ".layers.0.residual_layer1." not in key}
    state = got.state_dict()
    assert state.keys() == wanted.keys()
    assert all(torch.equal(state[key], weight) for key, weight in wanted.items())


def test_midas_names_are_those_of_transformers(network):
    state = network.state_dict()
    got = dict(used(transformers_names(iter(in_midas_names(state).items()))))

    assert got.keys() == {key for key in state if ".layers.0.residual_layer1." not in key}
    assert all(torch.equal(weight, state[key]) for key, weight in got.items())


def test_a_depth_models_file_brings_its_network(network, make_original, tmp_path, monkeypatch):
    monkeypatch.setattr(load_depth, "_HYBRID", TINY)
    path = tmp_path / "depth.safetensors"
    depth = {PREFIX + key: weight.contiguous() for key, weight in in_midas_names(network.state_dict()).items()}
    save_file({**make_original("sd2 depth").state, **depth}, path)
    family, config = identify(path)
    info = CheckpointInfo(name="depth", family=family.name, native_size=config.native_size)

    loaded = load_checkpoint(path, info, dtype=torch.float32, device=torch.device("cpu"))

    assert loaded.input == "depth"
    same(loaded.depth, network)
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        assert torch.equal(loaded.depth(pixels).predicted_depth, network(pixels).predicted_depth)


def test_a_folder_brings_its_network(network, tmp_path):
    network.save_pretrained(tmp_path / "depth_estimator")

    def weights():
        with open_weights(tmp_path / "depth_estimator" / "model.safetensors") as file:
            yield from file.tensors()

    got = folder_depth(tmp_path, weights, lambda module, given: module.load_state_dict(dict(given), assign=True))

    same(got, network)
    assert folder_depth(tmp_path / "nothing", weights, lambda *_: None) is None
    (tmp_path / "depth_estimator" / "config.json").write_text(json.dumps({"is_hybrid": True, "readout_type": "add"}))
    with pytest.raises(UnsupportedModel, match="depth network that cannot be made"):
        folder_depth(tmp_path, weights, lambda *_: None)


def test_a_network_for_other_than_squares_is_refused():
    with pytest.raises(UnsupportedModel, match="not for a square"):
        empty_depth({**TINY, "image_size": [64, 32]}, "a test")


def test_the_published_network_has_its_published_sizes():
    module = empty_depth(load_depth._HYBRID, "a test")
    assert sum(parameter.numel() for parameter in module.parameters()) == pytest.approx(123e6, rel=0.02)
    assert module(torch.zeros(1, 3, 384, 384, device="meta")).predicted_depth.shape == (1, 384, 384)
