"""What every reader of a container gives: the header of a model file, and the rules that hold for all of them.

Files come from strangers, so every length and offset is checked against the file's real size before it is believed;
what fails a check is told in one sentence. No torch, and no weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from webui.core.errors import UnsupportedModel

Container = Literal["safetensors", "shards", "pickle", "gguf"]

# Bits of one number, by the names that safetensors gives to dtypes.
BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "I64": 64,
    "U64": 64,
    "F64": 64,
}


# No tensor of a model has more; a product of many sizes would be slow to compute and mean nothing.
MAX_DIMENSIONS = 16


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """One tensor's dtype, as safetensors ("F16") or GGUF ("Q4_0") writes it, and its shape."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Borrowed:
    """Where a weight lies that the file itself lacks: in the file at `path`, as `name`."""

    path: Path
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a model file says about itself.

    `stored` has the name in the file of each tensor that `tensors` lists under another one; `borrowed` those that lie
    in other files (see `webui.checkpoints.completion`).
    """

    path: Path
    tensors: Mapping[str, TensorHeader]
    metadata: Mapping[str, str]
    container: Container = "safetensors"
    stored: Mapping[str, str] = field(default_factory=dict)
    borrowed: Mapping[str, Borrowed] = field(default_factory=dict)

    def shape(self, key: str) -> tuple[int, ...] | None:
        """The shape of the tensor `key`, None when there is none."""
        tensor = self.tensors.get(key)
        return None if tensor is None else tensor.shape

    def has(self, prefix: str) -> bool:
        """Whether any tensor's name begins with `prefix`."""
        return any(key.startswith(prefix) for key in self.tensors)


def wrongly_described(path: Path, name: object) -> UnsupportedModel:
    """The error for a tensor whose description contradicts itself."""
    return UnsupportedModel(f"{path.name} describes the tensor {str(name)[:80]!r} wrongly; it is damaged.")


def cut_off(path: Path, why: str) -> UnsupportedModel:
    """The error for a file that ends too early; `why` says how that shows."""
    return UnsupportedModel(f"{path.name} is cut off: {why}. Download it again.")
