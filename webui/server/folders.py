"""Makes the folders of an installation and says in a sentence which one cannot be used, before anything is loaded."""

from __future__ import annotations

import tempfile
from pathlib import Path

from webui.core.errors import DiskFull, UserError
from webui.core.paths import Folders, is_within

PROGRAM = Path(__file__).resolve().parents[1]


def prepare(folders: Folders) -> None:
    """Creates what is missing, all but the models; raises `UserError` or `DiskFull` naming the folder and its flag.

    A folder that pictures are written to must not be one that code is run from (A1111's issue 2571 is what follows).
    """
    if not folders.models.is_dir():
        raise UserError(
            f"The models folder {folders.models} does not exist; make it, or name another with --models-dir."
        )
    for executed in (folders.extensions, PROGRAM):
        if is_within(executed, folders.outputs):
            raise UserError(
                f"The output folder {folders.outputs} lies in {executed}, which programs are run from; choose another"
                " with --output-dir."
            )
    for folder, what, flag in (
        (folders.outputs, "output", "--output-dir"),
        (folders.data, "data", "--data-dir"),
        (folders.extensions, "extensions", "--extensions-dir"),
    ):
        _make_writable(folder, what, flag)
    folders.page_cache.mkdir(exist_ok=True)


def _make_writable(folder: Path, what: str, flag: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Only writing tells: permissions do not know of read-only mounts and full disks.
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"x")
    except OSError as error:
        raise DiskFull(
            f"The {what} folder {folder} cannot be written: {error.strerror}; choose another with {flag}."
        ) from error
