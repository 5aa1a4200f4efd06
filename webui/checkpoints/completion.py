"""A UNet that is alone in its file, or a checkpoint that lacks a part, with what it needs from other files.

GGUF files and many downloads hold a UNet only; a Stable Diffusion also needs text encoders and an autoencoder. Those of
a family are much the same everywhere, so they are borrowed, in this order:

1. the VAE beside the file under its name (``NAME.vae.safetensors``);
2. files in models/text_encoder (or ComfyUI's names of that folder) and in models/VAE: those whose names begin with the
   UNet's first, then by name. Shapes tell whether a text encoder fits. They do not tell version 1's autoencoder from
   XL's, so one is taken only if it begins with the UNet's name or declares its family;
3. the first complete checkpoint of the family, by name, whose text encoders fit;
4. the only VAE in models/VAE that declares nothing.

What comes back is a header like a whole file's, so that families, sizes and loading know nothing of all this. No torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from webui.checkpoints import keymap
from webui.checkpoints.containers.base import Borrowed
from webui.checkpoints.families import sd1, sd2, sdxl
from webui.checkpoints.families.markers import CONFIG_KEY
from webui.checkpoints.families.single_file import CONV_IN, transformer_entries
from webui.checkpoints.families.traits import Traits
from webui.checkpoints.header import Header, read_header
from webui.checkpoints.renaming import text_names, unet_names, vae_names
from webui.checkpoints.sidecars import find_sidecars
from webui.checkpoints.vaes import VAE_FOLDER, declared_families
from webui.checkpoints.walk import CHECKPOINT_FOLDER, files_below
from webui.core.errors import UnsupportedModel

# A1111's and Forge's folder, then ComfyUI's two.
TEXT_FOLDERS = ("text_encoder", "text_encoders", "clip")

_SUFFIXES = (".safetensors", ".sft", ".ckpt", ".pt", ".bin", ".gguf")
_TOLD = keymap.UNET_PREFIX + "label_emb.0.0.weight"
_REFINER_WIDTH = 1280
_TEXT, _VAE = "text encoder", "VAE"


@dataclass(frozen=True, slots=True)
class _Part:
    """What `path` lends: the names in a whole file of the weights, and their names in that one."""

    header: Header
    names: Mapping[str, str]

    @property
    def width(self) -> int:
        """How wide a text encoder's states are, 0 for anything else."""
        keys = (key for key in self.names.values() if key.endswith("token_embedding.weight"))
        shapes = (self.header.tensors[key].shape for key in keys)
        return next((shape[1] for shape in shapes if len(shape) == 2), 0)


def complete_header(path: Path) -> Header:
    """The header of the file at `path`, with what it lacks of a Stable Diffusion borrowed from files around it.

    Any other model's header comes back as it is. Raises `UnsupportedModel` for a file that cannot be read, and for a
    Stable Diffusion whose missing parts are nowhere.
    """
    header = read_header(path)
    names = unet_names(header)
    if not names:
        return header
    if not header.has(keymap.UNET_PREFIX):
        header = _renamed(header, names)
    traits = _traits(header)
    if traits is None:
        return header
    parts: list[_Part] = []
    around = _Surroundings(path)
    if not _has_texts(header, traits):
        parts += around.texts(header, traits) or around.lent(header, traits, _text_prefixes(traits))
        if not parts:
            raise _missing_texts(path, traits)
    if not header.has(keymap.VAE_PREFIX):
        vae = around.vae(traits) or around.lent(header, traits, (keymap.VAE_PREFIX,)) or around.only_vae()
        if not vae:
            raise _missing_vae(path, traits)
        parts += vae
    return _joined(header, parts)


def borrowed_notices(header: Header) -> tuple[str, ...]:
    """The sentence about what a completed header borrows; none where it borrows nothing."""
    by_file: dict[str, list[str]] = {}
    for name, source in header.borrowed.items():
        part = _VAE if name.startswith(keymap.VAE_PREFIX) else _TEXT
        if part not in by_file.setdefault(source.path.name, []):
            by_file[source.path.name].append(part)
    if not by_file:
        return ()
    parts = [f"the {' and the '.join(parts)} of {name}" for name, parts in by_file.items()]
    return (f"{header.path.name} is no complete checkpoint; it runs with {', '.join(parts)}.",)


def lending_files(models: Path) -> Iterator[Path]:
    """The files beside the checkpoints of which parts are borrowed."""
    for folder in (*TEXT_FOLDERS, VAE_FOLDER):
        yield from files_below(models / folder)


def _renamed(header: Header, names: Mapping[str, str]) -> Header:
    used = set(names.values())
    others = {key: tensor for key, tensor in header.tensors.items() if key not in used}
    return dataclasses.replace(
        header,
        tensors={**others, **{name: header.tensors[key] for name, key in names.items()}},
        stored={**header.stored, **{name: header.stored.get(key, key) for name, key in names.items()}},
    )


def _joined(header: Header, parts: Iterable[_Part]) -> Header:
    tensors, borrowed = dict(header.tensors), dict(header.borrowed)
    for part in parts:
        tensors |= {name: part.header.tensors[key] for name, key in part.names.items()}
        borrowed |= {name: Borrowed(part.header.path, key) for name, key in part.names.items()}
    return dataclasses.replace(header, tensors=tensors, borrowed=borrowed)


def _traits(header: Header) -> Traits | None:
    """The family of the UNet in `header`, None where it is none that runs with borrowed parts."""
    entries = transformer_entries(header)
    if CONV_IN not in header.tensors or not entries or f"{keymap.UNET_PREFIX}label_emb.weight" in header.tensors:
        return None
    if _TOLD in header.tensors:
        refines = _context(header) == _REFINER_WIDTH or _has_texts(header, sdxl.REFINER)
        return sdxl.REFINER if refines else sdxl.BASE
    return sd2.TRAITS if all(len(shape) == 2 for shape in entries) else sd1.TRAITS


def _context(header: Header) -> int:
    """How wide the text's states are that the UNet attends to, 0 where it attends to none."""
    shapes = (
        tensor.shape
        for key, tensor in header.tensors.items()
        if key.startswith(keymap.UNET_PREFIX) and key.endswith("attn2.to_k.weight")
    )
    return next((shape[1] for shape in shapes if len(shape) == 2), 0)


def _has_texts(header: Header, traits: Traits) -> bool:
    return all(any(header.has(prefix) for prefix in text.prefixes) for text in traits.text_encoders)


class _Surroundings:
    """The files around the one at `path` of which it may borrow; with no models folder above it, its sidecar alone."""

    def __init__(self, path: Path) -> None:
        self._path = path
        folder = next((place for place in path.parents if place.name == CHECKPOINT_FOLDER), None)
        self._checkpoints = folder
        self._models = None if folder is None else folder.parent

    def lent(self, header: Header, traits: Traits, prefixes: tuple[str, ...]) -> list[_Part]:
        """What the first complete checkpoint, by name, of the family and with the UNet's context has below `prefixes`.

        One with a configuration of its own has latents of its own, and lends nothing. [] where there is none.
        """
        for other in self._headers(self._checkpoints):
            whole = other.has(keymap.VAE_PREFIX) and CONFIG_KEY not in other.metadata
            kin = _traits(other) is traits and _context(other) == _context(header)
            if whole and kin and _has_texts(other, traits):
                return [_Part(other, {key: key for key in other.tensors if key.startswith(prefixes)})]
        return []

    def texts(self, header: Header, traits: Traits) -> list[_Part]:
        """The files in the text encoders' folders that are, together, as wide as the UNet's context; [] without."""
        if self._models is None:
            return []
        folders = [self._models / name for name in TEXT_FOLDERS]
        files = [other for folder in folders for other in self._headers(folder) if text_names(other, "")]
        wanted = _context(header)
        *first, last = traits.text_encoders
        for other in files:
            own = _Part(other, text_names(other, last.prefixes[0]))
            left = wanted - own.width
            if last.pooled and not any("text_projection" in name for name in own.names):
                continue
            if not first and not left:
                return [own]
            for beside in files if first else ():
                its = _Part(beside, text_names(beside, first[0].prefixes[0]))
                if beside is not other and its.width == left:
                    return [its, own]
        return []

    def vae(self, traits: Traits) -> list[_Part]:
        """The VAE beside the file, or the first of the VAE folder that is surely the family's; [] without."""
        beside = find_sidecars(self._path).vae
        files = [] if beside is None else [read_header(beside)]
        for other in (*files, *self._vaes()):
            names = vae_names(other)
            sure = other.path == beside or self._is_named_after(other.path) or traits.name in declared_families(other)
            if names and sure:
                return [_Part(other, names)]
        return []

    def only_vae(self) -> list[_Part]:
        """The VAE of the folder that does not say its family, where it is the only one; [] where not."""
        silent = [other for other in self._vaes() if vae_names(other) and not declared_families(other)]
        return [_Part(silent[0], vae_names(silent[0]))] if len(silent) == 1 else []

    def _vaes(self) -> Iterator[Header]:
        return self._headers(None if self._models is None else self._models / VAE_FOLDER)

    def _headers(self, folder: Path | None) -> Iterator[Header]:
        """The headers of the readable model files below `folder`, those named after the file first."""
        if folder is None:
            return
        files = [path for path in files_below(folder) if path.name.lower().endswith(_SUFFIXES)]
        for path in sorted(files, key=lambda path: (not self._is_named_after(path), path.name.casefold(), path)):
            try:
                yield read_header(path)
            except UnsupportedModel:
                continue  # the catalogue says what is wrong with it

    def _is_named_after(self, path: Path) -> bool:
        return path.name.casefold().startswith(self._path.stem.casefold())


def _text_prefixes(traits: Traits) -> tuple[str, ...]:
    return tuple(prefix for text in traits.text_encoders for prefix in text.prefixes)


def _missing_texts(path: Path, traits: Traits) -> UnsupportedModel:
    encoders = " and ".join(text.name for text in traits.text_encoders)
    return UnsupportedModel(
        f"{path.name} holds the UNet of {traits.title} without a text encoder ({encoders}); put that into"
        f" models/{TEXT_FOLDERS[0]}, or a complete checkpoint of that family into models/{CHECKPOINT_FOLDER}."
    )


def _missing_vae(path: Path, traits: Traits) -> UnsupportedModel:
    return UnsupportedModel(
        f"{path.name} holds the UNet of {traits.title} without a VAE; put one beside it as {path.stem}.vae.safetensors,"
        f" or a complete checkpoint of that family into models/{CHECKPOINT_FOLDER}."
    )
