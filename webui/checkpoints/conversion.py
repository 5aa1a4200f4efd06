"""Pickled weights → safetensors: the only way in which a pickle's weights are ever read.

torch's weights-only loader runs in a process of its own, which may take so much time, memory and disk and no more, and
writes a safetensors file; this process then maps that file and never opens the pickle. Converted files are kept in a
folder, the least recently used leaving first, so that a model is converted once.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from webui.checkpoints.header import Header, read_header
from webui.core.durable import fresh_temporary_path, make_folder, publish, sweep
from webui.core.errors import DiskFull, UnsupportedModel, UserError
from webui.core.paths import REPOSITORY

logger = logging.getLogger(__name__)

# What converted files may take together beside the one made last.
KEPT_BYTES = 32 * 2**30

# Reading, converting and writing take far less on any disk that holds models; importing torch takes some seconds.
_SECONDS = 120.0
_BYTES_PER_SECOND = 10 * 2**20
# The exit code with which the other process says a sentence, and does not just fail.
REFUSED = 3


@contextlib.contextmanager
def as_safetensors(header: Header, folder: Path | None) -> Iterator[Path]:
    """The pickle of `header` as a safetensors file, inside the block.

    The file is kept in `folder` for the next time; None means that it is made anew and removed. Raises
    `UnsupportedModel` or `DiskFull`.
    """
    if folder is not None:
        yield _kept(header, folder)
        return
    with tempfile.TemporaryDirectory(prefix="atelier-") as place:
        target = Path(place) / "converted.safetensors"
        _convert(header, target)
        yield target


def convert(source: Path, target: Path | None = None) -> Path:
    """Writes the pickle `source` as safetensors, beside it unless `target` says where; returns the new file's path.

    Raises `UnsupportedModel` for what is no pickle of weights, `UserError` when the target is there already.
    """
    header = read_header(source)
    if header.container != "pickle":
        raise UserError(f"{source.name} is no pickle but {header.container}; there is nothing to convert.")
    target = target or source.with_suffix(".safetensors")
    if target.exists():
        raise UserError(f"{target} is there already; name another file with --out.")
    _publish(header, target)
    return target


def _kept(header: Header, folder: Path) -> Path:
    state = header.path.stat()
    identity = f"{header.path.resolve()}\n{state.st_size}\n{state.st_mtime_ns}"
    target = folder / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.safetensors"
    if target.exists():
        os.utime(target)
        return target
    logger.info("Converting %s; `python -m webui convert %s` would do it once for all.", header.path.name, header.path)
    try:
        make_folder(folder)
        sweep(folder)
        _prune(folder)
    except OSError as error:
        raise DiskFull(f"The folder {folder} for converted models cannot be used: {error.strerror}.") from error
    _publish(header, target)
    return target


def _prune(folder: Path) -> None:
    """Removes the files used longest ago until the others are within `KEPT_BYTES`."""
    files = sorted(folder.glob("*.safetensors"), key=lambda file: file.stat().st_mtime, reverse=True)
    total = 0
    for file in files:
        total += file.stat().st_size
        if total > KEPT_BYTES:
            file.unlink()


def _publish(header: Header, target: Path) -> None:
    temporary = fresh_temporary_path(target.parent, target.name)
    try:
        _convert(header, temporary)
        publish(temporary, target)
    except FileExistsError:
        logger.debug("Somebody else converted %s at the same time", header.path)
    except OSError as error:
        raise DiskFull(f"{target} cannot be written: {error.strerror}; make room or choose another folder.") from error
    finally:
        temporary.unlink(missing_ok=True)


def _convert(header: Header, target: Path) -> None:
    """Runs the other process; afterwards `target` is a whole safetensors file."""
    source = header.path
    allowed_s = _SECONDS + source.stat().st_size / _BYTES_PER_SECOND
    started = time.monotonic()
    command = (
        sys.executable,
        "-m",
        "webui.checkpoints.conversion_process",
        str(source.resolve()),
        str(target.resolve()),
    )
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    try:
        done = subprocess.run(
            command,
            cwd=REPOSITORY,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=allowed_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise UnsupportedModel(
            f"{source.name} could not be converted within {allowed_s:.0f} s; it is damaged, or the disk is very slow."
        ) from error
    if done.returncode == REFUSED:
        raise UnsupportedModel(f"{source.name} cannot be read: {done.stdout.strip()[:300]}")
    if done.returncode != 0:
        logger.warning("Converting %s failed (%d): %s", source, done.returncode, done.stderr.strip()[-2000:])
        raise UnsupportedModel(
            f"{source.name} could not be converted: reading it took more time, memory or disk than its size explains,"
            " or it is damaged. Get the model as safetensors."
        )
    logger.info("Converted %s in %.1f s", source.name, time.monotonic() - started)
