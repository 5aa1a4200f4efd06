"""The settings file: read once, checked, written whole. A damaged file is set aside, never overwritten or half used."""

from __future__ import annotations

import json
import logging
import threading
import time
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from webui.core import durable
from webui.core.errors import DiskFull, UserError
from webui.settings.schema import Settings

_log = logging.getLogger(__name__)


class SettingsStore:
    """Holds the current settings and their file; every method may be called from any thread.

    `notice` is a sentence for the page where the file was damaged and defaults are used, None otherwise. Raises
    `UserError` where the file exists and cannot be read at all.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.notice: str | None = None
        self._lock = threading.Lock()
        self._current = self._read()

    @property
    def current(self) -> Settings:
        """The settings as they are now."""
        return self._current

    def update(self, **changes: Any) -> Settings:
        """Changes the named settings, keeps them in the file, and returns the result.

        All of them or none: raises `UserError` naming the setting and what is wrong with its value, and `DiskFull`
        where the file cannot be written; then nothing has changed.
        """
        with self._lock:
            try:
                changed = Settings.model_validate(self._current.model_dump() | changes)
            except ValidationError as error:
                raise UserError(_sentence(error)) from error
            self._write(_as_json(changed))
            self._current = changed
            return changed

    def _read(self) -> Settings:
        try:
            text = self.path.read_bytes()
        except FileNotFoundError:
            return Settings()
        except OSError as error:
            raise UserError(
                f"The settings file {self.path} cannot be read: {error.strerror}. Allow reading it, or move it away."
            ) from error
        try:
            return Settings.model_validate_json(text)
        except ValidationError as error:
            reason = _sentence(error)
        self.notice = f"The settings were damaged, so defaults are used. {self._set_aside()} ({reason})"
        _log.warning("%s", self.notice)
        return Settings()

    def _set_aside(self) -> str:
        """Moves the damaged file out of the way and says where it is."""
        name = f"{self.path.name}.broken-{time.strftime('%Y%m%d-%H%M%S')}"
        target = self.path.with_name(name)
        count = 1
        while target.exists():
            count += 1
            target = self.path.with_name(f"{name}-{count}")
        try:
            self.path.rename(target)
        except OSError as error:
            return f"The old file could not be moved and is still {self.path}: {error.strerror}."
        return f"The old file is kept as {target}."

    def _write(self, data: bytes) -> None:
        try:
            durable.make_folder(self.path.parent)
            durable.replace_file(self.path, data)
        except OSError as error:
            raise DiskFull(
                f"The settings cannot be saved in {self.path}: {error.strerror}. Free space, or allow writing there."
            ) from error


def _as_json(settings: Settings) -> bytes:
    try:
        text = json.dumps(settings.model_dump(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        return text.encode("utf-8")
    except ValueError as error:  # not a number, infinity, or half a surrogate
        raise UserError(f"The settings cannot be kept as JSON: {error}. Choose other values.") from error


def _sentence(error: ValidationError) -> str:
    """The first fault in words: which setting, which value, what is wrong."""
    fault = error.errors()[0]
    reason = fault["msg"].removeprefix("Value error, ")
    where = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "json_invalid":
        return f"The file is not JSON: {reason}."
    if fault["type"] == "extra_forbidden":
        return f"There is no setting named {where!r}; the names are {', '.join(Settings.model_fields)}."
    return f"The setting {where!r} cannot be {str(fault['input'])[:80]!r}: {reason.rstrip('.')}."
