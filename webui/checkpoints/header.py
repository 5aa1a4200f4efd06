"""Reads the header of a model file: names, shapes, dtypes and metadata, without torch and without weights.

What a file is, is decided by its first bytes and never by its name. One reader each container in
`webui.checkpoints.containers`; whoever needs a header asks here.
"""

from __future__ import annotations

from pathlib import Path

from webui.checkpoints.containers.base import Header, TensorHeader, cut_off
from webui.checkpoints.containers.ema import with_plain_names
from webui.checkpoints.containers.gguf_file import GGUF_START, read_gguf
from webui.checkpoints.containers.safetensors_file import read_safetensors
from webui.checkpoints.containers.shards import INDEX_SUFFIX, read_shards
from webui.checkpoints.containers.torch_file import LEGACY_START, ZIP_START, read_torch_legacy, read_torch_zip
from webui.core.errors import UnsupportedModel

__all__ = ["Header", "TensorHeader", "read_header"]

_PICKLE_STARTS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
# What turns up under a model's name: a download that became a web page, a picture beside the model.
_STRANGERS = (
    (b"\x89PNG\r\n\x1a\n", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"RIFF", "a WebP picture or a sound"),
    (b"<!DOCTYPE", "a web page"),
    (b"<!doctype", "a web page"),
    (b"<html", "a web page"),
    (b"version https://git-lfs", "a placeholder of Git LFS, not the model itself"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it"),
    (b"Rar!", "a RAR archive; unpack it"),
    (b"\x1f\x8b", "a gzip archive; unpack it"),
)
_SNIFFED_BYTES = 512


def read_header(path: Path) -> Header:
    """The checked header of the model file at `path`, whatever its container; raises `UnsupportedModel`, a sentence."""
    try:
        with path.open("rb") as file:
            first = file.read(_SNIFFED_BYTES)
        return with_plain_names(_read(path, first))
    except OSError as error:
        raise UnsupportedModel(f"{path.name} cannot be read: {error.strerror or error}.") from error


def _read(path: Path, first: bytes) -> Header:
    if not first:
        raise UnsupportedModel(f"{path.name} is empty (0 bytes); download it again.")
    if first.startswith(ZIP_START):
        return read_torch_zip(path)
    if first.startswith(LEGACY_START):
        return read_torch_legacy(path)
    if first.startswith(GGUF_START):
        return read_gguf(path)[0]
    if path.name.lower().endswith(INDEX_SUFFIX):
        return read_shards(path)
    _refuse_strangers(path, first)
    if len(first) < 8:
        raise cut_off(path, f"it has {len(first)} bytes")
    return read_safetensors(path)


def _refuse_strangers(path: Path, first: bytes) -> None:
    for start, what in _STRANGERS:
        if first.startswith(start):
            raise UnsupportedModel(f"{path.name} is {what}; choose or download the model itself.")
    if first[257:262] == b"ustar":
        raise UnsupportedModel(
            f"{path.name} is a tar archive, as torch wrote before version 0.4, or one to be unpacked; Atelier does not"
            " open it. Get the model as safetensors."
        )
    if first.startswith(_PICKLE_STARTS):
        raise UnsupportedModel(
            f"{path.name} is a pickle that torch did not write, which could run programs when it is opened; get the"
            " model as safetensors."
        )
