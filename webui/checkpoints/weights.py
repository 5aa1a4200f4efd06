"""The weights of a model file as tensors, whatever container they come in.

The only door to weights: checkpoints, VAEs, LoRAs, embeddings and upscalers are all read through `open_weights`.
Safetensors are mapped, so that a tensor costs memory only when it is copied; pickles go through
`webui.checkpoints.conversion` and are mapped after that; GGUF's blocks are read one tensor at a time, and given as they
are to whoever asks for a weight as it is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from webui.checkpoints.containers.gguf_file import Packed, read_gguf
from webui.checkpoints.containers.shards import shard_files
from webui.checkpoints.conversion import as_safetensors
from webui.checkpoints.header import Header, read_header
from webui.core.errors import UnsupportedModel
from webui.hardware.gguf_blocks import KINDS, Blocks

# A map is renewed after this much was read through it.
WINDOW_BYTES = 1 << 28

_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}  # of GGUF's types


Stored = Tensor | Blocks


def dense(weight: Stored) -> Tensor:
    """The weight as a tensor, float32 if it lies in blocks."""
    return weight.dense() if isinstance(weight, Blocks) else weight


class Weights:
    """An open model file. Tensors are on the CPU, in the file's dtype (GGUF: float32), and may be mapped: copy what is
    to live longer than the block in which the file is open. Blocks are the caller's own.
    """

    def __init__(self, header: Header, read: Callable[[str], Stored], lenders: Mapping[Path, Weights]) -> None:
        self.header = header
        self._read = read
        self._lenders = lenders

    def tensor(self, name: str) -> Tensor:
        """The tensor that the header lists as `name`; raises `UnsupportedModel` where it cannot be read."""
        return dense(self.stored(name))

    def stored(self, name: str) -> Stored:
        """As `tensor`, but a GGUF file's in their blocks."""
        borrowed = self.header.borrowed.get(name)
        if borrowed is not None:
            return self._lenders[borrowed.path].stored(borrowed.name)
        try:
            return self._read(self.header.stored.get(name, name))
        except (SafetensorError, OSError, KeyError, ValueError, RuntimeError) as error:
            raise UnsupportedModel(
                f"The weight {name[:80]!r} of {self.header.path.name} cannot be read: {error}; download the file again."
            ) from error

    def tensors(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        """All tensors whose names begin with `prefix`, in the header's order."""
        for name in self.header.tensors:
            if name.startswith(prefix):
                yield name, self.tensor(name)


@contextmanager
def open_weights(path: Path, *, conversions: Path | None = None, header: Header | None = None) -> Iterator[Weights]:
    """Opens the model file at `path`, or the index of its shards, by its content.

    `header` takes the place of the file's own, with other names or weights borrowed from other files, which are opened.
    `conversions` is the folder where converted pickles are kept; without one a pickle is converted each time. Raises
    `UnsupportedModel` with a sentence for what is damaged, unknown or a pickle that would run code.
    """
    header = read_header(path) if header is None else header
    with ExitStack() as stack:
        read = _reader(stack, header, conversions)
        lenders = {
            file: stack.enter_context(open_weights(file, conversions=conversions))
            for file in {source.path for source in header.borrowed.values()}
        }
        yield Weights(header, read, lenders)


def refuse_nan(weight: Stored, name: str, what: str) -> None:
    """Raises `UnsupportedModel` when `weight`, the tensor `name` of `what`, has a number that is not finite."""
    if not (weight.is_finite() if isinstance(weight, Blocks) else _is_finite(weight)):
        raise UnsupportedModel(
            f"The {what} has numbers that are not finite (NaN) in its weight {name[:80]!r}, so that its pictures would"
            " be black; download it again, or get it in another precision."
        )


def _is_finite(weight: Tensor) -> bool:
    """Whether all numbers are.

    Their sum is finite only if all are, but for an overflow; so only a sum that is not is looked at number by number.
    """
    return not weight.is_floating_point() or bool(weight.sum().isfinite()) or bool(weight.isfinite().all())


def _reader(stack: ExitStack, header: Header, conversions: Path | None) -> Callable[[str], Stored]:
    path = header.path
    if header.container == "gguf":
        return _gguf_reader(path)
    if header.container == "shards":
        return _mapped_reader(stack, path, shard_files(path))
    if header.container == "pickle":
        return _mapped_reader(stack, path, [stack.enter_context(as_safetensors(header, conversions))])
    return _mapped_reader(stack, path, [path])


def _mapped_reader(stack: ExitStack, path: Path, files: list[Path]) -> Callable[[str], Tensor]:
    try:
        maps = [stack.enter_context(closing(_Mapped(file))) for file in files]
    except (SafetensorError, OSError) as error:
        raise UnsupportedModel(f"{path.name} cannot be read: {error}; download it again.") from error
    owner = {name: mapped for mapped in maps for name in mapped.names}
    return lambda name: owner[name].tensor(name)


class _Mapped:
    """A safetensors file, mapped anew every `WINDOW_BYTES`.

    Pages once read count as this process's own for as long as the map lives, so a model would be in memory twice by the
    end: in the file's precision and as copied. Raises OSError where another file took its place between two maps.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._identity = _identity(path)
        self._read = 0
        self._file: Any = None
        self._open()
        self.names = tuple(self._file.keys())

    def _open(self) -> None:
        self.close()
        if _identity(self._path) != self._identity:
            raise OSError("it was replaced while it was read")
        self._file = safe_open(self._path, framework="pt", device="cpu")
        self._file.__enter__()

    def tensor(self, name: str) -> Tensor:
        """The tensor `name`, mapped; the map lasts until the tensor and this are gone."""
        if self._read > WINDOW_BYTES:
            self._open()
        tensor = self._file.get_tensor(name)
        self._read += tensor.nbytes
        return tensor

    def close(self) -> None:
        """Lets go of the file."""
        if self._file is not None:
            self._file.__exit__(None, None, None)
        self._file, self._read = None, 0


def _identity(path: Path) -> tuple[int, int, int]:
    state = path.stat()
    return state.st_ino, state.st_size, state.st_mtime_ns


def _gguf_reader(path: Path) -> Callable[[str], Stored]:
    """Reads what is asked for, rather than map it: blocks that stay as they are would be in memory twice."""
    import numpy as np

    packed = read_gguf(path)[1]

    def read(name: str) -> Stored:
        entry: Packed = packed[name]
        data = torch.from_numpy(np.fromfile(path, dtype=np.uint8, count=entry.size, offset=entry.start))
        blocks = data.view(-1, entry.kind.bytes)
        if entry.kind.name in KINDS:
            return Blocks(numbers=blocks.view(torch.int8), kind=entry.kind.name, shape=entry.shape)
        if entry.kind.name in _PLAIN:
            return data.view(_PLAIN[entry.kind.name]).reshape(entry.shape)
        return _unpacked(blocks, entry)

    return read


def _unpacked(blocks: Tensor, entry: Packed) -> Tensor:
    """What only the `gguf` package knows to widen."""
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    numbers = dequantize(blocks.numpy(), GGMLQuantizationType(entry.kind.number))
    return torch.from_numpy(numbers).reshape(entry.shape)
