"""The models of a models folder that make masks: CLIPSeg folders for words, U²-Net files for what stands in front.

Reads configurations and headers only and imports no torch; every question looks at the folder anew. Any thread may ask.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

from webui.checkpoints.content import kind_of
from webui.checkpoints.header import read_header
from webui.checkpoints.walk import Recognised, files_below
from webui.core.errors import ModelNotFound, UnsupportedModel

logger = logging.getLogger(__name__)

MASKING_FOLDER = "masking"

_CONFIG = "config.json"
_SUFFIXES = (".safetensors", ".pth", ".pt")


class MaskerFolder:
    """The mask models below a models folder, by file or folder name; where several would do, the first by name does."""

    def __init__(self, models: Path) -> None:
        self._folder = models / MASKING_FOLDER
        self._by_words = Recognised(_is_clipseg)
        self._foreground = Recognised(_is_u2net)

    def for_words(self) -> Path:
        """The CLIPSeg folder to use; raises `ModelNotFound`."""
        configs = ((path.parent.name, path) for path in files_below(self._folder) if path.name == _CONFIG)
        config = next(iter(self._by_words.among(configs).values()), None)
        if config is None:
            raise ModelNotFound(
                "Masking by words needs a CLIPSeg model; put the folder of one, such as CIDAS/clipseg-rd64-refined with"
                f" config.json and model.safetensors, into {self._folder}."
            )
        return config.parent

    def for_foreground(self) -> Path:
        """The U²-Net file to use; raises `ModelNotFound`."""
        files = ((path.stem, path) for path in files_below(self._folder) if path.suffix.lower() in _SUFFIXES)
        file = next(iter(self._foreground.among(files).values()), None)
        if file is None:
            raise ModelNotFound(
                f"Telling foreground from background needs a U²-Net model; put u2net.pth or u2netp.pth into"
                f" {self._folder}."
            )
        return file


def _is_clipseg(config: Path) -> bool:
    try:
        read = json.loads(config.read_bytes())
    except (OSError, ValueError) as error:
        logger.warning("%s cannot be read: %s", config, error)
        return False
    return isinstance(read, dict) and read.get("model_type") == "clipseg"


def _is_u2net(path: Path) -> bool:
    try:
        return kind_of(read_header(path)) == "mask model"
    except UnsupportedModel as error:
        logger.warning("%s", error)
        return False
