"""Pictures without the page: requests through the engine's port, their pictures into files the caller names.

It keeps no queue and no history; whoever wants those submits a job. It knows no flags: `webui.commands` does.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from webui.core.catalogue import DIMENSION_STEP
from webui.core.durable import make_folder, replace_file
from webui.core.errors import AtelierError, DiskFull, UpscalerNotFound, UserError
from webui.core.events import Finished, ImageReady, Notice
from webui.core.fields import replaced
from webui.core.geometry import Size
from webui.core.pictures import open_picture
from webui.core.ports import Control, Engine, ModelCatalogue
from webui.core.requests import DiffusionRequest, Inpaint, InpaintArea, Request, Upscale, grown_size
from webui.core.validation import validate, with_seed
from webui.gallery.pictures import png_bytes, read_infotext

SUFFIX = ".png"
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff")

Diffusion = TypeVar("Diffusion", bound=DiffusionRequest)


@dataclass(frozen=True, slots=True)
class Made:
    """What a request came to: its pictures, sentences, and seconds by phase."""

    images: list[ImageReady]
    notices: list[str]
    seconds: Mapping[str, float]


# --- one request


def make_request(
    catalogue: ModelCatalogue,
    empty: Diffusion,
    wishes: Mapping[str, Any],
    *,
    width: int | None,
    height: int | None,
    picture: Size | None = None,
) -> Diffusion:
    """`empty` with the fields of dotted names in `wishes`, checked, its seed, checkpoint and size settled.

    A size left out is that of the `picture` it starts from, or the checkpoint's own; with a picture, one side left out
    follows the other. Raises `InvalidRequest` and `CheckpointNotFound`.
    """
    checkpoint = catalogue.checkpoint(wishes.get("checkpoint", ""))
    request = replaced(empty, {**wishes, "checkpoint": checkpoint.name})
    own = checkpoint.native_size if picture is None else _own_size(request, picture, checkpoint.native_size)
    if picture is not None and width is None and height is not None:
        width = _to_step(height * own.width / own.height)
    if picture is not None and height is None and width is not None:
        height = _to_step(width * own.height / own.width)
    request = dataclasses.replace(request, width=width or own.width, height=height or own.height)
    validate(request)
    seeded = with_seed(request)
    assert isinstance(seeded, type(empty))
    return seeded


def _own_size(request: DiffusionRequest, picture: Size, native: Size) -> Size:
    """The size to work at where none is asked for: the picture's, but the checkpoint's for a part of it."""
    if isinstance(request, Inpaint):
        if request.area is InpaintArea.MASKED:
            return native
        if request.outpaint.grows:
            return grown_size(picture, request.outpaint)
    return Size(_to_step(picture.width), _to_step(picture.height))


def _to_step(length: float) -> int:
    return max(1, round(length / DIMENSION_STEP)) * DIMENSION_STEP


def read_picture(path: Path, max_pixels: int) -> tuple[bytes, Size]:
    """A picture as requests hold it, PNG with what it says about itself, and its size; raises `UnreadableImage`."""
    image = open_picture(path, max_pixels)
    return png_bytes(image, read_infotext(path, max_pixels) or ""), Size(*image.size)


def check_target(out: Path) -> Path:
    """`out` as an absolute path in a folder that exists; raises `UserError` or `DiskFull`."""
    out = out.expanduser().absolute()
    if out.suffix.lower() != SUFFIX:
        raise UserError(f"--out {out} does not end in {SUFFIX}; pictures are written as PNG.")
    if out.is_dir():
        raise UserError(f"--out {out} is a folder; name a file in it.")
    _make_folder(out)
    return out


def generate(engine: Engine, request: DiffusionRequest, out: Path) -> dict[str, Any]:
    """Runs the request and writes its pictures; returns what `python -m webui generate` prints.

    One picture goes to `out`, several go to `out` with -1, -2, … before the suffix. Existing files are replaced.
    """
    begin = time.perf_counter()
    made = _run(engine, request)
    files = [target(out, ready.index, request.total_images) for ready in made.images]
    for file, ready in zip(files, made.images, strict=True):
        _write(file, ready.image, ready.infotext)
    size = made.images[0].image.size
    return {
        "seed": request.seed,
        "seconds": {**{name: round(spent, 4) for name, spent in made.seconds.items()}, "total": _since(begin)},
        "file": str(files[0]),
        "files": [str(file) for file in files],
        "width": size[0],
        "height": size[1],
        "checkpoint": request.checkpoint,
        "notices": made.notices,
    }


def target(out: Path, index: int, total: int) -> Path:
    """The file of picture `index` (from 0) of `total`."""
    return out if total == 1 else out.with_name(f"{out.stem}-{index + 1}{out.suffix}")


# --- many pictures enlarged


@dataclass(frozen=True, slots=True)
class Enlargement:
    """One picture of a batch: where it lies, and where what is made of it goes."""

    source: Path
    target: Path


def batch(inputs: Sequence[Path], out: Path) -> list[Enlargement]:
    """What to enlarge: each picture named, and those below each folder named, in order; results keep their names.

    A result lies below `out` as its picture lies below the folder named, as PNG. Pictures that would come to the same
    result, such as a.jpg and a.png, keep their suffix in its name. What lies in `out` is never taken from a folder;
    raises `UserError` where that is the folder itself, and where there are no pictures.
    """
    out = out.expanduser().absolute()
    found: dict[Path, Path] = {}
    for given in inputs:
        source = given.expanduser().absolute()
        if source.is_dir():
            if out.resolve() == source.resolve():
                raise UserError(f"--out {out} is the folder that the pictures are in; choose another.")
            found.update({path: path.relative_to(source) for path in _pictures_below(source, besides=out)})
        else:
            found[source] = Path(source.name)
    if not found:
        raise UserError(f"There are no pictures in {', '.join(str(given) for given in inputs)}.")
    results = Counter(_as_png(place) for place in found.values())
    return [
        Enlargement(source, out / (_as_png(place) if results[_as_png(place)] == 1 else Path(f"{place}{SUFFIX}")))
        for source, place in found.items()
    ]


def _as_png(place: Path) -> Path:
    return place.with_suffix(SUFFIX)


def _pictures_below(folder: Path, *, besides: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in sorted(folders) if Path(place, name) != besides]
        yield from (Path(place, name) for name in sorted(files) if name.lower().endswith(PICTURE_SUFFIXES))


def check_upscale(catalogue: ModelCatalogue, wanted: Upscale) -> None:
    """Raises `UpscalerNotFound`, `UserError` or `InvalidRequest` for what no picture could make good."""
    known = catalogue.upscalers()
    for name in filter(None, (wanted.upscaler, wanted.upscaler_2)):
        if name not in known:
            raise UpscalerNotFound(f"There is no upscaler {name!r}; choose one of {', '.join(known)}.")
    restorers = catalogue.face_restorers()
    if wanted.faces.model and wanted.faces.model not in restorers:
        choices = f"choose one of {', '.join(restorers)}" if restorers else "none is installed"
        raise UserError(f"There is no face restorer {wanted.faces.model!r}; {choices}.")
    validate(_for_picture(wanted, b"a picture", Size(1, 1)))


def upscale(
    engine: Engine, wanted: Upscale, pictures: Sequence[Enlargement], *, overwrite: bool, max_pixels: int
) -> Iterator[dict[str, Any]]:
    """Enlarges `pictures` as `wanted` says, less its picture; yields what `python -m webui upscale` prints for each.

    What is there already is skipped unless `overwrite`, so a batch that was interrupted goes on. A picture that cannot
    be made yields its "error", a sentence, and the others are made.
    """
    for picture in pictures:
        line: dict[str, Any] = {"input": str(picture.source)}
        try:
            if _is_there(picture) and not overwrite:
                yield line | {"file": str(picture.target), "skipped": True}
            else:
                yield line | _enlarge(engine, wanted, picture, max_pixels)
        except AtelierError as error:
            yield line | {"error": str(error)}


def _is_there(picture: Enlargement) -> bool:
    """Whether there is a result already; raises `UserError` where that is the picture itself."""
    there = picture.target.exists()
    if there and picture.source.exists() and picture.target.samefile(picture.source):
        raise UserError(f"{picture.source} would be replaced by what is made of it; choose another --out.")
    return there


def _enlarge(engine: Engine, wanted: Upscale, picture: Enlargement, max_pixels: int) -> dict[str, Any]:
    begin = time.perf_counter()
    data, size = read_picture(picture.source, max_pixels)
    _make_folder(picture.target)
    request = _for_picture(wanted, data, size)
    validate(request)
    made = _run(engine, request)
    ready = made.images[0]
    _write(picture.target, ready.image, ready.infotext)
    return {
        "file": str(picture.target),
        "width": ready.image.width,
        "height": ready.image.height,
        "seconds": _since(begin),
        "notices": made.notices,
    }


def _for_picture(wanted: Upscale, data: bytes, size: Size) -> Upscale:
    """`wanted` for one picture: a side of the target size that was left out follows the other."""
    width, height = wanted.width, wanted.height
    if bool(width) != bool(height):
        width = width or max(1, round(height * size.width / size.height))
        height = height or max(1, round(width * size.height / size.width))
    return dataclasses.replace(wanted, image=data, width=width, height=height)


# --- engine and files


def _run(engine: Engine, request: Request) -> Made:
    images: list[ImageReady] = []
    notices: list[str] = []
    seconds: Mapping[str, float] = {}
    for event in engine.generate(request, control=Control()):
        if isinstance(event, ImageReady):
            images.append(event)
        elif isinstance(event, Notice):
            notices.append(event.text)
        elif isinstance(event, Finished):
            seconds = event.seconds
    return Made(images, notices, seconds)


def _make_folder(file: Path) -> None:
    """Makes the folder that `file` is to lie in."""
    try:
        make_folder(file.parent)
    except OSError as error:
        raise _unwritable(file, error) from error


def _write(file: Path, image: Image.Image, infotext: str) -> None:
    try:
        replace_file(file, png_bytes(image, infotext))
    except OSError as error:
        raise _unwritable(file, error) from error


def _unwritable(file: Path, error: OSError) -> DiskFull:
    return DiskFull(f"{file} cannot be written: {error.strerror or error}; choose another --out.")


def _since(begin: float) -> float:
    return round(time.perf_counter() - begin, 4)
