"""The separate VAEs of a models folder: those in its VAE folder, and those beside a checkpoint under the same name.

A VAE is called by its file's name, below the VAE folder with its path. Reads headers only and imports no torch; every
question looks at the folders anew and reads again only the files that changed. Any thread may ask.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from webui.checkpoints.header import Header, read_header
from webui.checkpoints.sidecars import VAE_SUFFIXES, find_sidecars
from webui.checkpoints.walk import Recognised, files_below
from webui.core.catalogue import VAE_AUTOMATIC, VAE_OWN
from webui.core.errors import UnsupportedModel, VaeNotFound

logger = logging.getLogger(__name__)

VAE_FOLDER = "VAE"
# What a VAE's names begin with: nothing, or what they begin with inside a checkpoint.
PREFIXES = ("", "first_stage_model.")

ARCHITECTURE_KEY = "modelspec.architecture"
# Families that share their latents, by the beginning of what files declare; the shapes of all of these are the same.
_DECLARED = {
    "stable-diffusion-v1": ("sd1", "sd2"),
    "stable-diffusion-v2": ("sd1", "sd2"),
    "stable-diffusion-xl": ("sdxl", "sdxl-refiner"),
}
_SUFFIXES = (".safetensors", ".pt", ".ckpt", ".bin", ".pth")


def is_sidecar(name: str) -> bool:
    """Whether a file of that name among checkpoints is a checkpoint's VAE."""
    return name.lower().endswith(VAE_SUFFIXES)


def prefix_of(header: Header) -> str | None:
    """What the names of the VAE in a file begin with; None where there is no VAE in it."""
    return next((prefix for prefix in PREFIXES if f"{prefix}decoder.conv_in.weight" in header.tensors), None)


def declared_families(header: Header) -> tuple[str, ...]:
    """The families that the VAE in a file says to be for; () where it says nothing that is known."""
    declared = header.metadata.get(ARCHITECTURE_KEY, "")
    return next((families for beginning, families in _DECLARED.items() if declared.startswith(beginning)), ())


class VaeFolder:
    """The VAEs below a models folder and beside its checkpoints in `checkpoints`; neither folder need exist."""

    def __init__(self, models: Path, checkpoints: Path) -> None:
        self._folder = models / VAE_FOLDER
        self._checkpoints = checkpoints
        self._recognised = Recognised(lambda path: _holds_vae(path))  # looked up late

    def names(self) -> Sequence[str]:
        """All VAEs, those of the VAE folder first, each in order of name."""
        return tuple(self._files())

    def path(self, name: str) -> Path:
        """The file of that VAE; raises `VaeNotFound`."""
        files = self._files()
        if name not in files:
            known = ", ".join((VAE_AUTOMATIC, VAE_OWN, *files))
            raise VaeNotFound(f"There is no VAE {name!r} in {self._folder}; choose one of {known}.")
        return files[name]

    def chosen(self, choice: str, *, checkpoint: Path, preferred: str) -> Path | None:
        """The VAE to use with the file or folder `checkpoint`, None for its own.

        "Automatic" is the one beside it, else the setting `preferred`, "" for its own. Raises `VaeNotFound`.
        """
        if choice == VAE_OWN:
            return None
        if choice != VAE_AUTOMATIC:
            return self.path(choice)
        beside = None if checkpoint.is_dir() else find_sidecars(checkpoint).vae
        return beside or (self.path(preferred) if preferred else None)

    def _files(self) -> dict[str, Path]:
        return self._recognised.among(self._candidates())

    def _candidates(self) -> Iterator[tuple[str, Path]]:
        for path in files_below(self._folder):
            if path.name.lower().endswith(_SUFFIXES):
                yield path.relative_to(self._folder).as_posix(), path
        for path in files_below(self._checkpoints):
            if is_sidecar(path.name):
                yield path.name, path


def _holds_vae(path: Path) -> bool:
    try:
        found = prefix_of(read_header(path)) is not None
    except UnsupportedModel as error:
        logger.warning("%s", error)
        return False
    if not found:
        logger.warning("%s is no VAE that Atelier knows.", path.name)
    return found
