"""Pictures without the page: one request through the engine's port, its pictures into files the caller names.

It keeps no queue and no history; whoever wants those submits a job. It knows no flags: `webui.cli` does.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from webui.core.durable import make_folder, replace_file
from webui.core.errors import DiskFull, UserError
from webui.core.events import Finished, ImageReady, Notice
from webui.core.ports import Control, Engine, ModelCatalogue
from webui.core.requests import Txt2Img
from webui.core.validation import validate, with_seed
from webui.gallery.pictures import png_bytes

SUFFIX = ".png"


def make_request(catalogue: ModelCatalogue, *, width: int | None, height: int | None, **fields: Any) -> Txt2Img:
    """A checked request with its seed and checkpoint settled; a size left out is the checkpoint's own.

    `fields` are those of `Txt2Img`. Raises `InvalidRequest` and `CheckpointNotFound`.
    """
    checkpoint = catalogue.checkpoint(fields.pop("checkpoint", ""))
    request = Txt2Img(
        checkpoint=checkpoint.name,
        width=checkpoint.native_size.width if width is None else width,
        height=checkpoint.native_size.height if height is None else height,
        **fields,
    )
    validate(request)
    seeded = with_seed(request)
    assert isinstance(seeded, Txt2Img)
    return seeded


def check_target(out: Path) -> Path:
    """`out` as an absolute path in a folder that exists; raises `UserError` or `DiskFull`."""
    out = out.expanduser().absolute()
    if out.suffix.lower() != SUFFIX:
        raise UserError(f"--out {out} does not end in {SUFFIX}; pictures are written as PNG.")
    if out.is_dir():
        raise UserError(f"--out {out} is a folder; name a file in it.")
    try:
        make_folder(out.parent)
    except OSError as error:
        raise _unwritable(out, error) from error
    return out


def generate(engine: Engine, request: Txt2Img, out: Path) -> dict[str, Any]:
    """Runs the request and writes its pictures; returns what `python -m webui generate` prints.

    One picture goes to `out`, several go to `out` with -1, -2, … before the suffix. Existing files are replaced.
    """
    begin = time.perf_counter()
    files: list[Path] = []
    notices: list[str] = []
    seconds: Mapping[str, float] = {}
    for event in engine.generate(request, control=Control()):
        if isinstance(event, ImageReady):
            files.append(target(out, event.index, request.total_images))
            _write(files[-1], event.image, event.infotext)
        elif isinstance(event, Notice):
            notices.append(event.text)
        elif isinstance(event, Finished):
            seconds = event.seconds
    return {
        "seed": request.seed,
        "seconds": {**{name: round(spent, 4) for name, spent in seconds.items()}, "total": _since(begin)},
        "file": str(files[0]),
        "files": [str(file) for file in files],
        "width": request.width,
        "height": request.height,
        "checkpoint": request.checkpoint,
        "notices": notices,
    }


def target(out: Path, index: int, total: int) -> Path:
    """The file of picture `index` (from 0) of `total`."""
    return out if total == 1 else out.with_name(f"{out.stem}-{index + 1}{out.suffix}")


def _write(file: Path, image: Image.Image, infotext: str) -> None:
    try:
        replace_file(file, png_bytes(image, infotext))
    except OSError as error:
        raise _unwritable(file, error) from error


def _unwritable(file: Path, error: OSError) -> DiskFull:
    return DiskFull(f"{file} cannot be written: {error.strerror or error}; choose another --out.")


def _since(begin: float) -> float:
    return round(time.perf_counter() - begin, 4)
