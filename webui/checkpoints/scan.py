"""The catalogue of the models folder: what can be chosen, where it lies, and what is wrong with the rest.

Reads headers only and imports no torch, so that the page can list models while torch is still loading. Every question
looks at the folder anew, and reads again only the files that changed. Any thread may ask.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from webui.checkpoints.completion import lending_files
from webui.checkpoints.containers.shards import INDEX_SUFFIX, is_shard
from webui.checkpoints.detect import FOLDER_INDEX, identify
from webui.checkpoints.faces import FaceFolder
from webui.checkpoints.families.x4_upscaler import X4_UPSCALER
from webui.checkpoints.maskers import MaskerFolder
from webui.checkpoints.sidecars import find_sidecars
from webui.checkpoints.vaes import VaeFolder, is_sidecar
from webui.checkpoints.walk import CHECKPOINT_FOLDER, files_below
from webui.core.catalogue import BUILT_IN_UPSCALERS
from webui.core.errors import CheckpointNotFound, UnsupportedModel, UpscalerNotFound, UserError
from webui.core.ports import CheckpointInfo

logger = logging.getLogger(__name__)

BUILT_IN_CHECKPOINT = "atelier-sketchbook"
# A1111's, and in either case of letters: it writes ScuNET, its users SCUNet.
UPSCALER_FOLDERS = ("ESRGAN", "RealESRGAN", "DAT", "HAT", "SwinIR", "ScuNET")

# What may hold a model; whether it does, and which kind, is decided by its content.
_MODEL_SUFFIXES = (".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin", ".gguf", INDEX_SUFFIX)
_UPSCALER_SUFFIXES = (".safetensors", ".pth", ".pt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A file or folder that cannot be used, and why, in a sentence."""

    path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class _Entry:
    """A usable checkpoint, or the reason why it is not."""

    path: Path
    found: CheckpointInfo | str


class CheckpointFolder:
    """Implements `webui.core.ports.ModelCatalogue` over a models folder laid out as A1111's.

    `preferred` gives the name of the default checkpoint, "" for the built-in one. `conversions` is where pickles that
    were converted are kept, None to keep none. Raises `UserError` when `models` is not a folder.
    """

    def __init__(self, models: Path, *, preferred: Callable[[], str] = str, conversions: Path | None = None) -> None:
        if not models.is_dir():
            raise UserError(f"The models folder {models} does not exist; make it, or name another one.")
        self._models = models
        self.conversions = conversions
        self._preferred = preferred
        self._lock = threading.Lock()
        self._known: dict[Hashable, CheckpointInfo | str] = {}
        self._vaes = VaeFolder(models, models / CHECKPOINT_FOLDER)
        self._faces = FaceFolder(models)
        self.maskers = MaskerFolder(models)

    @property
    def models(self) -> Path:
        """The models folder itself."""
        return self._models

    def checkpoints(self) -> Sequence[CheckpointInfo]:
        """All usable checkpoints, the default first, then by name."""
        found = {info.name: info for info in self._usable()}
        default = self._default(found)
        return sorted(found.values(), key=lambda info: (info.name != default, info.name.casefold()))

    def checkpoint(self, name: str) -> CheckpointInfo:
        """The checkpoint of that name, the default for ""; raises `CheckpointNotFound` or `UnsupportedModel`."""
        return self._entry(name)[1]

    def path(self, name: str) -> Path:
        """The file or diffusers folder of a checkpoint, the default's for ""; raises as `checkpoint` does."""
        return self._entry(name)[0]

    def problems(self) -> Sequence[Problem]:
        """Everything in the checkpoints folder that cannot be used, with the reason."""
        return [Problem(path=entry.path, reason=entry.found) for entry in self._scan() if isinstance(entry.found, str)]

    def upscalers(self) -> Sequence[str]:
        """The built-in upscalers, then the files in the upscaler folders, then checkpoints that enlarge."""
        files = self._upscaler_files()
        return (*BUILT_IN_UPSCALERS, *files, *(name for name in self._enlarging() if name not in files))

    def upscales_by_diffusion(self, name: str) -> bool:
        """Whether the upscaler of that name is a checkpoint, to be loaded as one."""
        return name not in self._upscaler_files() and name in self._enlarging()

    def upscaler_path(self, name: str) -> Path:
        """The file of an upscaler network; raises `UpscalerNotFound` (the built-in ones have no file)."""
        files = self._upscaler_files()
        if name not in files:
            known = ", ".join(self.upscalers())
            raise UpscalerNotFound(f"There is no upscaler {name!r}; choose one of {known}.")
        return files[name]

    def face_restorers(self) -> Sequence[str]:
        """The networks that restore faces, by their files' names."""
        return self._faces.names()

    def face_restorer_path(self, name: str) -> Path:
        """The file of a network that restores faces; raises `ModelNotFound`."""
        return self._faces.path(name)

    def vaes(self) -> Sequence[str]:
        """The files in the VAE folder, then those beside checkpoints."""
        return self._vaes.names()

    def vae_path(self, choice: str, *, checkpoint: Path, preferred: str) -> Path | None:
        """The VAE to use with the file or folder `checkpoint`, None for its own; see `VaeFolder.chosen`."""
        return self._vaes.chosen(choice, checkpoint=checkpoint, preferred=preferred)

    def _enlarging(self) -> list[str]:
        return sorted((info.name for info in self._usable() if info.family == X4_UPSCALER.name), key=str.casefold)

    def _usable(self) -> Iterator[CheckpointInfo]:
        return (entry.found for entry in self._scan() if isinstance(entry.found, CheckpointInfo))

    def _default(self, found: dict[str, CheckpointInfo]) -> str:
        preferred = self._preferred()
        if preferred in found:
            return preferred
        if preferred:
            logger.warning("The default checkpoint %r is not in %s; another one stands in.", preferred, self._models)
        return BUILT_IN_CHECKPOINT if BUILT_IN_CHECKPOINT in found else min(found, key=str.casefold, default="")

    def _entry(self, name: str) -> tuple[Path, CheckpointInfo]:
        entries = self._scan()
        usable = {entry.found.name: (entry.path, entry.found) for entry in entries if not isinstance(entry.found, str)}
        wanted = name or self._default({key: info for key, (_, info) in usable.items()})
        if wanted in usable:
            return usable[wanted]
        for entry in entries:
            if isinstance(entry.found, str) and self._name(entry.path) == wanted:
                raise UnsupportedModel(entry.found)
        folder = self._models / CHECKPOINT_FOLDER
        if not usable:
            raise CheckpointNotFound(f"There is no usable checkpoint in {folder}; put one there.")
        raise CheckpointNotFound(f"There is no checkpoint {wanted!r} in {folder}; choose one of {', '.join(usable)}.")

    def _name(self, path: Path) -> str:
        relative = path.relative_to(self._models / CHECKPOINT_FOLDER)
        if path.name.lower().endswith(INDEX_SUFFIX):
            return relative.as_posix()[: -len(INDEX_SUFFIX)]
        return (relative if path.is_dir() else relative.with_suffix("")).as_posix()

    def _scan(self) -> list[_Entry]:
        """Looks through the folder; what has the name of an earlier checkpoint becomes a problem."""
        with self._lock:
            seen: dict[str, Path] = {}
            entries: list[_Entry] = []
            known: dict[Hashable, CheckpointInfo | str] = {}
            states = [_state(path) for path in model_files(self._models / CHECKPOINT_FOLDER)]
            # A model that lacks a part becomes usable when another file lends it.
            around = (*states, *map(_state, lending_files(self._models)))
            for state in states:
                path = state[0]
                if is_sidecar(path.name):
                    continue
                found = self._known.get(state) or self._known.get((state, around)) or self._inspect(path)
                known[(state, around) if isinstance(found, str) else state] = found
                if isinstance(found, CheckpointInfo):
                    earlier = seen.setdefault(found.name, path)
                    if earlier != path:
                        found = f"{path.name} has the same name as {earlier.name}; rename one of them."
                entries.append(_Entry(path, found))
            self._known = known
            return entries

    def _inspect(self, path: Path) -> CheckpointInfo | str:
        try:
            family, config = identify(path)
        except UnsupportedModel as error:
            logger.warning("%s", error)
            return str(error)
        return CheckpointInfo(name=self._name(path), family=family.name, native_size=config.native_size)

    def _upscaler_files(self) -> dict[str, Path]:
        files: dict[str, Path] = {}
        order = {name.casefold(): place for place, name in enumerate(UPSCALER_FOLDERS)}
        places = [place for place in sorted(self._models.iterdir()) if place.name.casefold() in order]
        for place in sorted(places, key=lambda place: order[place.name.casefold()]):
            for path in files_below(place):
                if path.suffix.lower() in _UPSCALER_SUFFIXES and path.stem not in BUILT_IN_UPSCALERS:
                    files.setdefault(path.stem, path)
        return files


def model_files(root: Path) -> Iterator[Path]:
    """Model files and diffusers folders below `root` in order of path; a diffusers folder is not looked into.

    Parts of a model that an index lists are not given beside the index. Symbolic links are followed, as people keep
    models on another disk; a link back up the tree is not.
    """
    entered: set[str] = set()
    for place, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(place)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        if FOLDER_INDEX in files and Path(place) != root:
            folders.clear()
            yield Path(place)
            continue
        folders.sort()
        indexed = any(name.lower().endswith(INDEX_SUFFIX) for name in files)
        for name in sorted(files):
            if name.lower().endswith(_MODEL_SUFFIXES) and not (indexed and is_shard(name)):
                yield Path(place, name)


def _state(path: Path) -> tuple[Path, int, int]:
    """What changes when a model does, or the configuration beside it; the newest of several files stands for all."""
    if path.is_dir():
        states = [file.stat() for file in (path / FOLDER_INDEX, *path.glob("*/*.json")) if file.exists()]
        return path, sum(state.st_size for state in states), max((state.st_mtime_ns for state in states), default=0)
    try:
        state = path.stat()
        config = find_sidecars(path).config
        changed = state.st_mtime_ns if config is None else max(state.st_mtime_ns, config.stat().st_mtime_ns)
    except OSError:  # a dangling link: reading it will say so
        return path, -1, -1
    return path, state.st_size + (config is not None), changed
