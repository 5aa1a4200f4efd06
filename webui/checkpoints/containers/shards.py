"""Weights split over several safetensors files, and the JSON index that lists them (huggingface's layout)."""

from __future__ import annotations

import json
import re
from pathlib import Path

from webui.checkpoints.containers.base import Header, TensorHeader
from webui.checkpoints.containers.safetensors_file import read_safetensors
from webui.core.errors import UnsupportedModel

INDEX_SUFFIX = ".safetensors.index.json"

_MAX_INDEX_BYTES = 64 * 2**20
_SHARD = re.compile(r"-\d{5}-of-\d{5}(\.fp16)?\.safetensors$", re.IGNORECASE)


def is_shard(name: str) -> bool:
    """Whether a file of that name is one part of several, which an index lists."""
    return _SHARD.search(name) is not None


def shard_files(path: Path) -> list[Path]:
    """The files that the index at `path` lists, which lie beside it; raises `UnsupportedModel`, or OSError."""
    with path.open("rb") as file:
        raw = file.read(_MAX_INDEX_BYTES)
    try:
        weight_map = json.loads(raw)["weight_map"]
        names = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UnsupportedModel(
            f"{path.name} is JSON or text, but no index of weights; choose the model itself."
        ) from error
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise UnsupportedModel(f"{path.name} names files outside its folder, or none; it is damaged.")
    return [path.parent / name for name in names]


def read_shards(path: Path) -> Header:
    """The headers of all shards as one; raises `UnsupportedModel` naming a shard that is missing or damaged."""
    tensors: dict[str, TensorHeader] = {}
    metadata: dict[str, str] = {}
    for file in shard_files(path):
        if not file.is_file():
            raise UnsupportedModel(
                f"{path.name} lists {file.name}, which is not beside it; copy the whole model again."
            )
        header = read_safetensors(file)
        tensors.update(header.tensors)
        metadata.update(header.metadata)
    return Header(path=path, tensors=tensors, metadata=metadata, container="shards")
