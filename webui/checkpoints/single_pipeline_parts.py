"""Where the parts of a flow model lie: in its file, or in the folders where A1111, Forge and ComfyUI keep them.

Text encoders are known by names and widths of their weights, for each transformer fits one width. Autoencoders of
different models are alike in names and shapes, so where there are several, file names decide. Headers only: no torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from webui.checkpoints.completion import TEXT_FOLDERS
from webui.checkpoints.families.flow import FLOW_MODELS, FlowModel, TextName, flow_model
from webui.checkpoints.families.sizes import Part
from webui.checkpoints.flow_names import t5_name
from webui.checkpoints.header import Header, read_header
from webui.checkpoints.sentencepiece_model import read_pieces
from webui.checkpoints.sidecars import find_sidecars
from webui.checkpoints.vaes import VAE_FOLDER, prefix_of
from webui.checkpoints.walk import CHECKPOINT_FOLDER, files_below
from webui.core.errors import UnsupportedModel

_SUFFIXES = (".safetensors", ".sft", ".gguf", ".pt", ".bin")
_MAX_TOKENIZER_BYTES = 20_000_000

_IN_CHECKPOINT = {
    name: f"text_encoders.{folder}.transformer."
    for name, folder in (("clip_l", "clip_l"), ("clip_g", "clip_g"), ("t5", "t5xxl"))
}
_VAE_IN_CHECKPOINT = ("first_stage_model.", "vae.")
_CLIP_MARK = "text_model.embeddings.token_embedding.weight"
_T5_MARK = "shared.weight"
# What people call the files.
_TITLES: dict[TextName, str] = {"clip_l": "CLIP-L (clip_l)", "clip_g": "CLIP-G (clip_g)", "t5": "T5-XXL (t5xxl)"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One part in the file with `header`, below `prefix`."""

    header: Header
    prefix: str = ""

    def part(self, what: str) -> Part:
        """The shapes of its weights."""
        return Part(self.header, self.prefix, what=what)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The parts of a model beside its transformer; T5 comes with the file of its tokenizer."""

    vae: Source
    texts: dict[TextName, Source]
    t5_tokenizer: Path | None


def find_parts(model: FlowModel, config: dict[str, Any], header: Header, models: Path) -> Parts:
    """The parts for the transformer in the file with `header` that takes `config`.

    Raises `UnsupportedModel` that says in a sentence what is missing and where it belongs.
    """
    files = list(_text_files(models))
    texts = _texts(model, config, header, files)
    tokenizer = _t5_tokenizer(models) if "t5" in texts else None
    if tokenizer is None and "t5" in model.optional:
        texts.pop("t5", None)
    vae = _vae(model, config, header, models)
    lacks = [_TITLES[name] for name in model.texts.values() if name not in texts and name not in model.optional]
    if "t5" in texts and tokenizer is None:
        lacks.append("T5's tokenizer (spiece.model or tokenizer.json)")
    if lacks or vae is None:
        raise _missing(model, header, lacks, vae)
    return Parts(vae=vae, texts=texts, t5_tokenizer=tokenizer)


def pipeline_files(path: Path, models: Path) -> tuple[Path, ...]:
    """What a pipeline's checkpoint at `path` is loaded from: itself, and what its file does not bring.

    Raises as `find_parts` does.
    """
    header = None if path.is_dir() else read_header(path)
    model = None if header is None else flow_model(header)
    if header is None or model is None:
        return (path,)
    parts = find_parts(model, model.config(header), header, models)
    beside = (source.header.path for source in (parts.vae, *parts.texts.values()))
    return tuple(dict.fromkeys((path, *beside)))


def _missing(model: FlowModel, header: Header, texts: list[str], vae: Source | None) -> UnsupportedModel:
    wanted = [f"{' and '.join(texts)} in models/{TEXT_FOLDERS[0]}"] if texts else []
    if vae is None:
        named = " or ".join(model.vae_files)
        wanted.append(f"its VAE in models/{VAE_FOLDER} (a file whose name begins with {named})")
    return UnsupportedModel(
        f"{header.path.name} is a {model.title} model that does not bring all its parts; it also needs"
        f" {', and '.join(wanted)}: put them there, Atelier downloads nothing by itself."
    )


# -------------------------------------------------------------------------------------------------------- text encoders


def _texts(model: FlowModel, config: dict[str, Any], header: Header, files: list[Header]) -> dict[TextName, Source]:
    """Its own text encoders, and those from `files` whose widths fit the transformer."""
    wanted = set(model.texts.values())
    found: dict[TextName, Source] = {}
    for name in wanted:
        if header.has(_IN_CHECKPOINT[name]):
            found[name] = Source(header=header, prefix=_IN_CHECKPOINT[name])
    if "t5" in wanted and "t5" not in found:
        width = config["joint_attention_dim"]
        fitting = next((file for file in files if _width(file, _T5_MARK) == width), None)
        if fitting is not None:
            found["t5"] = Source(header=fitting)
    clips = {_width(file, _CLIP_MARK): Source(header=file) for file in files[::-1]}
    clips.pop(0, None)
    pooled = config.get("pooled_projection_dim", 0)
    if "clip_g" in wanted and not {"clip_l", "clip_g"} <= found.keys():
        narrow = next((width for width in sorted(clips) if width < pooled - width and pooled - width in clips), None)
        if narrow is not None:
            found["clip_l"], found["clip_g"] = clips[narrow], clips[pooled - narrow]
    elif "clip_l" in wanted and "clip_l" not in found and pooled in clips:
        found["clip_l"] = clips[pooled]
    return found


def _text_files(models: Path) -> Iterator[Header]:
    """The headers of what lies in the folders for text encoders; a file that cannot be read is passed over."""
    for folder in TEXT_FOLDERS:
        for path in files_below(models / folder):
            if path.suffix.lower() in _SUFFIXES:
                try:
                    yield read_header(path)
                except UnsupportedModel:
                    continue


def _width(header: Header, mark: str) -> int:
    """The width of the embeddings that are called `mark`, 0 where there are none."""
    names = {t5_name(name): name for name in header.tensors}
    shape = header.shape(names.get(mark, mark)) or ()
    return shape[1] if len(shape) == 2 else 0


def _t5_tokenizer(models: Path) -> Path | None:
    """T5's tokenizer beside the text encoders, or in a diffusers folder among the checkpoints."""
    beside = [path for folder in TEXT_FOLDERS for path in files_below(models / folder)]
    inside = sorted((models / CHECKPOINT_FOLDER).glob("*/tokenizer*/*"))
    return next((path for path in (*beside, *inside) if _is_t5_tokenizer(path)), None)


def _is_t5_tokenizer(path: Path) -> bool:
    """Whether the file has SentencePiece's unigrams in the order that T5 has: padding, end, unknown."""
    try:
        if path.suffix.lower() == ".model":
            first = read_pieces(path).pieces[:3]
        elif path.suffix.lower() == ".json" and path.stat().st_size <= _MAX_TOKENIZER_BYTES:
            model = json.loads(path.read_text(encoding="utf-8"))["model"]
            first = model["vocab"][:3] if model["type"] == "Unigram" else ()
        else:
            return False
        return [piece for piece, _ in first] == ["<pad>", "</s>", "<unk>"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError, UnsupportedModel):
        return False


# ------------------------------------------------------------------------------------------------------------------ VAE


def _vae(model: FlowModel, config: dict[str, Any], header: Header, models: Path) -> Source | None:
    """The one beside the file, its own, or one of the VAE folder with its channels and no other model's name."""
    beside = find_sidecars(header.path).vae
    if beside is not None:
        return _alone(read_header(beside))
    for prefix in _VAE_IN_CHECKPOINT:
        if f"{prefix}decoder.conv_in.weight" in header.tensors:
            return Source(header=header, prefix=prefix)
    channels = config["in_channels"] // model.packed
    fitting = [source for source in _vaes(models) if _latent_channels(source) == channels]
    named = [source for source in fitting if _is_called(source, model.vae_files)]
    known = tuple(name for other in FLOW_MODELS for name in other.vae_files)
    unnamed = [source for source in fitting if not _is_called(source, known)]
    return next(iter(named or unnamed[:1] * (len(unnamed) == 1)), None)


def _is_called(source: Source, beginnings: tuple[str, ...]) -> bool:
    return source.header.path.name.lower().startswith(beginnings)


def _vaes(models: Path) -> Iterator[Source]:
    for path in files_below(models / VAE_FOLDER):
        if path.suffix.lower() in _SUFFIXES:
            try:
                source = _alone(read_header(path))
            except UnsupportedModel:
                continue
            if source is not None:
                yield source


def _alone(header: Header) -> Source | None:
    prefix = prefix_of(header)
    return None if prefix is None else Source(header=header, prefix=prefix)


def _latent_channels(source: Source) -> int:
    shape = source.header.shape(f"{source.prefix}decoder.conv_in.weight") or ()
    return shape[1] if len(shape) == 4 else 0
