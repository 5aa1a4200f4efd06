"""The networks of a models folder that restore faces, in the two folders that A1111 gives them.

Those folders also hold face detectors and parsers that other programs put there, so a file counts by the weights that
it holds. Reads headers only and imports no torch. Any thread may ask.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from webui.checkpoints.content import kind_of
from webui.checkpoints.header import read_header
from webui.checkpoints.walk import Recognised
from webui.core.errors import ModelNotFound, UnsupportedModel

logger = logging.getLogger(__name__)

FACE_FOLDERS = ("GFPGAN", "Codeformer")

_SUFFIXES = (".safetensors", ".pth", ".pt")


class FaceFolder:
    """The face restorers below a models folder; neither of the two folders need exist."""

    def __init__(self, models: Path) -> None:
        self._folders = tuple(models / name for name in FACE_FOLDERS)
        self._recognised = Recognised(_restores_faces)

    def names(self) -> Sequence[str]:
        """All face restorers, by their files' names without suffix."""
        return tuple(self._files())

    def path(self, name: str) -> Path:
        """The file of that face restorer; raises `ModelNotFound`."""
        files = self._files()
        if not files:
            raise ModelNotFound(
                f"There is no model that restores faces; put GFPGANv1.4.pth into {self._folders[0]},"
                f" or codeformer.pth into {self._folders[1]}."
            )
        if name not in files:
            raise ModelNotFound(f"There is no face restorer {name!r}; choose one of {', '.join(files)}.")
        return files[name]

    def _files(self) -> dict[str, Path]:
        return self._recognised.among(self._candidates())

    def _candidates(self) -> Iterator[tuple[str, Path]]:
        for folder in self._folders:
            for path in sorted(folder.iterdir()) if folder.is_dir() else ():
                if path.suffix.lower() in _SUFFIXES:
                    yield path.stem, path


def _restores_faces(path: Path) -> bool:
    try:
        return kind_of(read_header(path)) == "face restorer"
    except UnsupportedModel as error:
        logger.warning("%s", error)
        return False
