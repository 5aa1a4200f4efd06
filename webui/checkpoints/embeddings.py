"""Textual-inversion embeddings: words that stand for learnt vectors, found by their files' names.

Gal et al. 2022, arXiv 2208.01618. Files come in the layouts of A1111 (`string_to_param`), diffusers (one tensor, under
the word it was learnt for) and SDXL's trainers (`clip_l`, `clip_g`), and as pictures that carry the first one as text.
A file is read when a prompt first uses it. Any thread may ask.
"""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from webui.checkpoints.weights import open_weights
from webui.core.errors import UnsupportedModel

PICTURE_KEY = "sd-ti-embedding"
_PICTURE_SUFFIX = ".png"
_PICTURE_START_BYTES = 4096  # A1111 writes the text before the pixels
_SUFFIXES = (".safetensors", ".pt", ".bin")
_ENCODERS = ("clip_l", "clip_g", "clip_h")
_A1111_PREFIX = "string_to_param."


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Embedding:
    """Vectors by the text encoder that they are for, or under "" where the file does not say: (n, width) float32."""

    name: str
    path: Path
    modified_ns: int
    vectors: Mapping[str, Tensor]

    def vectors_for(self, encoder: str, width: int) -> Tensor | None:
        """(n, `width`) float32 on the CPU for that encoder ("clip_l" …); None where this embedding has none for it."""
        for key in (encoder, ""):
            vectors = self.vectors.get(key)
            if vectors is not None and vectors.shape[1] == width:
                return vectors
        return None


class EmbeddingFolder:
    """The embeddings below some folders, by file name without suffix; the first of a name counts. None need exist.

    `conversions` is the folder where converted pickles are kept.
    """

    def __init__(self, folders: Sequence[Path], *, conversions: Path | None = None) -> None:
        self._folders = tuple(folders)
        self._conversions = conversions
        self._lock = threading.Lock()
        self._read: dict[tuple[Path, int, int], Embedding] = {}

    def current(self) -> Embeddings:
        """What lies in the folders now; take it once for a run."""
        found: dict[str, Path] = {}
        for folder in self._folders:
            for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
                if path.suffix.lower() in _SUFFIXES or _is_picture(path):
                    found.setdefault(path.stem, path)
        return Embeddings(found, self._load)

    def _load(self, name: str, path: Path) -> Embedding:
        try:
            state = path.stat()
        except OSError as error:
            raise UnsupportedModel(f"The embedding {path.name} cannot be read: {error.strerror}.") from error
        key = (path, state.st_size, state.st_mtime_ns)
        with self._lock:
            if key not in self._read:
                vectors = read_embedding(path, conversions=self._conversions)
                self._read = {old: known for old, known in self._read.items() if old[0] != path}
                self._read[key] = Embedding(name=name, path=path, modified_ns=key[2], vectors=vectors)
            return self._read[key]


class Embeddings:
    """The embeddings that there were at one moment, to be looked up in prompts; `load` reads one by name and path."""

    def __init__(self, paths: Mapping[str, Path], load: Callable[[str, Path], Embedding]) -> None:
        self._paths = dict(paths)
        self._load = load
        self._names = {name.casefold(): name for name in reversed(self._paths)}
        longest_first = sorted(self._names, key=len, reverse=True)
        words = "|".join(re.escape(name) for name in longest_first)
        self._pattern = re.compile(rf"(?<!\w)(?:{words})(?!\w)", re.IGNORECASE) if words else None

    def names(self) -> Sequence[str]:
        """The names of all, in order."""
        return sorted(self._paths, key=str.casefold)

    def find(self, words: str) -> Embedding | None:
        """The embedding called `words`, in any case, None where there is none; raises `UnsupportedModel`."""
        name = self._names.get(words.casefold())
        return None if name is None else self._load(name, self._paths[name])

    def split(self, text: str) -> list[str | Embedding]:
        """`text` in pieces: embeddings that it names as whole words, in any case, and what stands between them.

        Where several names begin at one place, the longest is meant. Raises `UnsupportedModel` for a damaged file.
        """
        pieces: list[str | Embedding] = []
        end = 0
        for match in self._pattern.finditer(text) if self._pattern else ():
            embedding = self.find(match[0])
            if embedding is not None:
                pieces += [text[end : match.start()], embedding]
                end = match.end()
        return [piece for piece in (*pieces, text[end:]) if piece != ""]


def read_embedding(path: Path, *, conversions: Path | None = None) -> Mapping[str, Tensor]:
    """The vectors of an embedding file as in `Embedding.vectors`; raises `UnsupportedModel` naming file and fault.

    `conversions` is the folder where `webui.checkpoints.weights` keeps converted pickles.
    """
    if path.suffix.lower() == _PICTURE_SUFFIX:
        values = _from_picture(path)
    else:
        with open_weights(path, conversions=conversions) as weights:
            values = {name: tensor.clone() for name, tensor in weights.tensors()}
    vectors = _vectors(values)
    if not vectors:
        raise UnsupportedModel(f"{path.name} holds no embedding; it does not belong in this folder.")
    return vectors


def _vectors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that are embeddings; one vector (width,) counts as (1, width)."""
    tensors = {name: tensor for name, tensor in tensors.items() if tensor.ndim in (1, 2) and tensor.numel()}
    named = {encoder: tensors[encoder] for encoder in _ENCODERS if encoder in tensors}
    if not named:
        unnamed = [tensor for name, tensor in tensors.items() if name.startswith(_A1111_PREFIX)] or [*tensors.values()]
        named = {"": unnamed[0]} if len(unnamed) == 1 else {}
    return {encoder: tensor.float().reshape(-1, tensor.shape[-1]) for encoder, tensor in named.items()}


def _is_picture(path: Path) -> bool:
    """Whether `path` is a picture that carries an embedding; most pictures here are thumbnails beside other files."""
    if path.suffix.lower() != _PICTURE_SUFFIX:
        return False
    try:
        with path.open("rb") as file:
            return PICTURE_KEY.encode() in file.read(_PICTURE_START_BYTES)
    except OSError:
        return False


def _from_picture(path: Path) -> Mapping[str, Tensor]:
    """A1111's JSON in base64 in a PNG's text, in which tensors are lists under "TORCHTENSOR"."""
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            values = json.loads(base64.b64decode(getattr(picture, "text", {})[PICTURE_KEY]))
        entries = values["string_to_param"].items()
        return {f"{_A1111_PREFIX}{word}": torch.tensor(value["TORCHTENSOR"]) for word, value in entries}
    except (Image.DecompressionBombError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnsupportedModel(f"The embedding in {path.name} cannot be read: {error}; download it again.") from error
