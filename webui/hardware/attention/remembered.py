"""The choices of attention that were made on this machine, in one small JSON file, so that none is measured twice.

The file names the versions that it was written under; another torch, driver or kernel library begins a new one. It is
a cache: a file that is damaged or cannot be written is said in the log and costs a second's measuring.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from webui.core import durable

logger = logging.getLogger(__name__)

_LIBRARIES = ("xformers", "flash-attn", "sageattention", "triton")
_DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The backend that was chosen, the seconds that each took, and why each of the others was refused."""

    name: str
    seconds: Mapping[str, float] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)


def installed_versions(driver: Path = _DRIVER) -> dict[str, str]:
    """What a choice depends on: torch, what it was built for, the driver's first line, and the kernel libraries."""
    versions = {"torch": str(torch.__version__)}
    for library in _LIBRARIES:
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    if driver.exists():
        versions["driver"] = driver.read_text(encoding="utf-8", errors="replace").partition("\n")[0].strip()
    return versions


class RememberedChoices:
    """The choices in `file`, or only in memory without one; for one thread."""

    def __init__(self, file: Path | None = None, versions: Mapping[str, str] | None = None) -> None:
        self._file = file
        self._versions = dict(installed_versions() if versions is None else versions)
        self._choices = self._read()

    def get(self, key: str) -> Choice | None:
        """What was chosen under `key`, if anything."""
        return self._choices.get(key)

    def put(self, key: str, choice: Choice) -> None:
        """Notes a choice, in the file as well."""
        self._choices[key] = choice
        if self._file is None:
            return
        content = {"versions": self._versions, "choices": {name: asdict(each) for name, each in self._choices.items()}}
        try:
            durable.make_folder(self._file.parent)
            durable.replace_file(self._file, json.dumps(content, indent=1).encode())
        except OSError as error:
            logger.warning("The choice of attention cannot be kept in %s: %s", self._file, error.strerror)

    def _read(self) -> dict[str, Choice]:
        if self._file is None or not self._file.exists():
            return {}
        try:
            content: Any = json.loads(self._file.read_text(encoding="utf-8"))
            if content["versions"] != self._versions:
                return {}
            return {str(key): Choice(**choice) for key, choice in content["choices"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            logger.warning("The choices of attention in %s cannot be read (%s); measuring anew.", self._file, error)
            return {}
