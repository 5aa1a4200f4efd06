"""The depth network of Stable Diffusion 2's depth model: MiDaS' DPT-Hybrid (Ranftl et al. 2021, arXiv 2103.13413).

A diffusers folder has it as "depth_estimator", in transformers' names; the original file below "depth_model.", in those
of MiDaS. It is small, and asked once a request: so it waits in main memory, in float32, as its norms overflow in half.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from webui.checkpoints.families.base import read_json
from webui.checkpoints.weights import Weights
from webui.core.errors import UnsupportedModel
from webui.hardware import torchvision_operators

if TYPE_CHECKING:
    from transformers import DPTForDepthEstimation

FOLDER = "depth_estimator"
PREFIX = "depth_model.model."

# What the published file's configuration says beyond transformers' defaults.
_HYBRID: Mapping[str, Any] = {
    "is_hybrid": True,
    "neck_hidden_sizes": [256, 512, 768, 768],
    "reassemble_factors": [1, 1, 1, 0.5],
}
# The first fusion has nothing to add to what it is given, so its first unit is never asked; many files lack it.
_UNASKED = "neck.fusion_stage.layers.0.residual_layer1."
_SURPLUS = (_UNASKED, "dpt.pooler.", "pretrained.model.head.")

_UNIT = r"scratch\.refinenet(\d)\.resConfUnit(\d)\.conv(\d)\."
_RULES: tuple[tuple[str, Callable[[re.Match[str]], str]], ...] = (
    (r"scratch\.layer(\d)_rn\.", lambda m: f"neck.convs.{int(m[1]) - 1}."),
    (r"scratch\.refinenet(\d)\.out_conv\.", lambda m: f"neck.fusion_stage.layers.{4 - int(m[1])}.projection."),
    (_UNIT, lambda m: f"neck.fusion_stage.layers.{4 - int(m[1])}.residual_layer{m[2]}.convolution{m[3]}."),
    (r"scratch\.output_conv\.", lambda _: "head.head."),
    (r"pretrained\.act_postprocess(\d)\.0\.project\.", lambda m: f"{_REASSEMBLE}readout_projects.{int(m[1]) - 1}."),
    (r"pretrained\.act_postprocess(\d)\.3\.", lambda m: f"{_REASSEMBLE}layers.{int(m[1]) - 1}.projection."),
    (r"pretrained\.act_postprocess(\d)\.4\.", lambda m: f"{_REASSEMBLE}layers.{int(m[1]) - 1}.resize."),
    (r"pretrained\.model\.patch_embed\.backbone\.stem\.conv\.", lambda _: f"{_BACKBONE}embedder.convolution."),
    (r"pretrained\.model\.patch_embed\.backbone\.stem\.norm\.", lambda _: f"{_BACKBONE}embedder.norm."),
    (
        r"pretrained\.model\.patch_embed\.backbone\.stages\.(\d+)\.blocks\.",
        lambda m: f"{_BACKBONE}encoder.stages.{m[1]}.layers.",
    ),
    (r"pretrained\.model\.patch_embed\.proj\.", lambda _: "dpt.embeddings.projection."),
    (r"pretrained\.model\.cls_token", lambda _: "dpt.embeddings.cls_token"),
    (r"pretrained\.model\.pos_embed", lambda _: "dpt.embeddings.position_embeddings"),
    (r"pretrained\.model\.norm\.", lambda _: "dpt.layernorm."),
    (r"pretrained\.model\.blocks\.(\d+)\.([a-z0-9]+(?:\.[a-z]\w+)?)\.", lambda m: _block(m[1], m[2])),
)
_REASSEMBLE, _BACKBONE = "neck.reassemble_stage.", "dpt.embeddings.backbone.bit."
_BLOCK = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.qkv": "attention.attention.qkv",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}

NamedWeights = Iterator[tuple[str, Tensor]]
Fill = Callable[[nn.Module, NamedWeights], None]


def folder_depth(model: Path, weights: Callable[[], NamedWeights], fill: Fill) -> DPTForDepthEstimation | None:
    """The depth network of the diffusers folder `model`, None where it has none.

    `weights` reads those of the component, and `fill` gives them to a module. Raises `UnsupportedModel`.
    """
    if not (model / FOLDER).is_dir():
        return None
    module = empty_depth(read_json(model / FOLDER / "config.json", model), f"The folder {model.name}")
    fill(module, used(weights()))
    return module


def file_depth(file: Weights, fill: Fill) -> DPTForDepthEstimation | None:
    """The depth network in the original `file`, None where it has none; raises `UnsupportedModel`."""
    if not file.header.has(PREFIX):
        return None
    module = empty_depth(_HYBRID, file.header.path.name)
    stored = ((name.removeprefix(PREFIX), weight) for name, weight in file.tensors(PREFIX))
    fill(module, used(transformers_names(stored)))
    return module


def empty_depth(config: Mapping[str, Any], source: str) -> DPTForDepthEstimation:
    """The network of transformers' `config`, without memory; raises `UnsupportedModel`, naming `source`."""
    torchvision_operators.declare()
    from transformers import DPTConfig, DPTForDepthEstimation

    try:
        wanted = DPTConfig.from_dict(dict(config))
        with torch.device("meta"):
            module = DPTForDepthEstimation(wanted)
        first: Any = module.neck.fusion_stage.layers[0]
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, RuntimeError) as error:
        raise UnsupportedModel(f"{source} has a depth network that cannot be made: {error}.") from error
    if not isinstance(wanted.image_size, int):
        raise UnsupportedModel(f"{source} has a depth network for pictures of {wanted.image_size}, not for a square.")
    first.residual_layer1 = nn.Identity()
    return module


def used(weights: NamedWeights) -> NamedWeights:
    """Those of `weights` that the network is asked for."""
    return ((name, weight) for name, weight in weights if not name.startswith(_SURPLUS))


def transformers_names(weights: NamedWeights) -> NamedWeights:
    """MiDaS' weights under transformers' names; query, key and value apart, which it keeps in one matrix."""
    for key, weight in weights:
        rules = ((re.match(pattern, key), name) for pattern, name in _RULES)
        renamed = next((name(match) + key[match.end() :] for match, name in rules if match), key)
        if ".qkv." not in renamed:
            yield renamed, weight
            continue
        for part, rows in zip(("query", "key", "value"), weight.chunk(3), strict=True):
            yield renamed.replace(".qkv.", f".{part}."), rows


def _block(number: str, part: str) -> str:
    return f"dpt.encoder.layer.{number}.{_BLOCK.get(part, part)}."
