"""A folder of pictures as the requests that work through it, one a picture. Pure, but for listing folders.

Results have the names of what they were made from, so that a folder that was left half done is gone on with by asking
for it again: what is there is skipped, and nothing is ever overwritten. Who may name folders of this machine is
settled before (`webui.extensions.access`).
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from webui.core.errors import InvalidRequest
from webui.core.fields import get_field, replaced
from webui.core.infotext import KnownModels, infotext_to_request, parse_infotext
from webui.core.requests import Img2Img, Inpaint, Request, Upscale
from webui.jobs.views import FolderFile

MOST_PICTURES = 10_000

_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff"})

# What of a picture's own parameters may be used in place of the form's: words for the page → fields of the request.
OWN_PARAMETERS: Mapping[str, tuple[str, ...]] = {
    "Prompt": ("prompt",),
    "Negative prompt": ("negative_prompt",),
    "Seed": ("seed",),
    "Steps": ("steps",),
    "Sampler": ("sampler", "schedule_type"),
    "CFG scale": ("cfg_scale",),
    "Size": ("width", "height"),
    "Checkpoint": ("checkpoint",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderBatch:
    """What is asked for: a folder of pictures, one for the results, one of masks (inpainting needs it).

    `own` are keys of `OWN_PARAMETERS` that each picture's own infotext says.
    """

    inputs: Path
    outputs: Path
    masks: Path | None = None
    own: tuple[str, ...] = ()


def named_folder(what: str, text: object) -> Path:
    """The folder that `text` names; raises `InvalidRequest` naming `what` where it is no whole path."""
    written = text.strip() if isinstance(text, str) else ""
    path = Path(written).expanduser() if written else Path()
    if not path.is_absolute():
        said = f"is {written!r}" if written else "is empty"
        raise InvalidRequest(f"The {what} {said}; give a whole path of the machine that Atelier runs on.")
    return path


def picture_fields(request: Request) -> tuple[str, ...]:
    """The fields of `request` that a folder's files fill: the picture's, then the mask's. None for txt2img."""
    if isinstance(request, Upscale):
        return ("image",)
    if isinstance(request, Inpaint):
        return ("init_image", "mask")
    return ("init_image",) if isinstance(request, Img2Img) else ()


def listed(batch: FolderBatch, *, masked: bool) -> list[FolderFile]:
    """Every picture of the folder by name, its result's place and, where `masked`, its mask; creates nothing.

    Raises `InvalidRequest` where a folder cannot be read, holds no picture or too many, is its own output folder, or
    where a picture has no mask.
    """
    names = _pictures(batch.inputs, "input folder")
    if not names:
        raise InvalidRequest(f"The input folder {str(batch.inputs)!r} holds no pictures; choose another.")
    if len(names) > MOST_PICTURES:
        raise InvalidRequest(
            f"The input folder {str(batch.inputs)!r} holds {len(names):,} pictures; at most {MOST_PICTURES:,} go at"
            " once, so divide it."
        )
    if batch.outputs.resolve() == batch.inputs.resolve():
        raise InvalidRequest(
            f"The output folder is the input folder, {str(batch.inputs)!r}; choose another, for results have the"
            " names of what they were made from."
        )
    masks = _masks(names, batch.masks) if masked else {}
    targets = _target_names(names)
    return [
        FolderFile(source=batch.inputs / name, target=batch.outputs / targets[name], mask=masks.get(name))
        for name in names
    ]


def target_at(target: Path, index: int) -> Path:
    """Where picture `index` (from 0) of a job goes: the target, then name-2, name-3, …"""
    return target if index == 0 else target.with_name(f"{target.stem}-{index + 1}{target.suffix}")


def is_made(file: FolderFile, request: Request) -> bool:
    """Whether every picture that `request` makes of `file` is there."""
    return all(target_at(file.target, index).exists() for index in range(request.total_images))


def with_own_parameters(
    request: Request, infotext: str, own: Sequence[str], models: KnownModels
) -> tuple[Request, tuple[str, ...]]:
    """`request` with what `infotext` says about the parameters `own`, and a sentence for each that is not to be had.

    A text without parameters changes nothing.
    """
    info = parse_infotext(infotext)
    if isinstance(request, Upscale) or not own or not info.pairs:
        return request, ()
    # The checkpoint is only asked after where it is wanted, so that nobody is told that another one is missing.
    known = KnownModels(checkpoints=models.checkpoints if "Checkpoint" in own else None)
    pasted = infotext_to_request(info, request, known)
    names = [name for words in own for name in OWN_PARAMETERS.get(words, ())]
    return replaced(request, {name: get_field(pasted.request, name) for name in names}), pasted.warnings


def with_pictures(request: Request, pictures: Sequence[bytes]) -> Request:
    """`request` with `pictures` (PNG) in its picture fields, in their order; fields left over keep what they have."""
    return dataclasses.replace(request, **dict(zip(picture_fields(request), pictures, strict=False)))


def _pictures(folder: Path, what: str) -> list[str]:
    """The names of the pictures in `folder`, in order."""
    try:
        with os.scandir(folder) as entries:
            found = [entry.name for entry in entries if _is_picture(entry.name) and entry.is_file()]
    except OSError as error:
        reason = error.strerror or str(error)
        raise InvalidRequest(f"The {what} {str(folder)!r} cannot be read ({reason}); choose another.") from error
    return sorted(found)


def _is_picture(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in _SUFFIXES


def _masks(names: Sequence[str], folder: Path | None) -> dict[str, Path]:
    """The mask of each of `names`: the file of the same name, or else of the same name but for the suffix."""
    if folder is None:
        raise InvalidRequest("Inpainting a folder needs a folder of masks with the same file names; name one.")
    there = dict.fromkeys(_pictures(folder, "folder of masks"))
    by_stem = {Path(name).stem: name for name in reversed(there)}
    found = {name: name if name in there else by_stem.get(Path(name).stem) for name in names}
    missing = [name for name, mask in found.items() if mask is None]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InvalidRequest(f"The folder of masks {str(folder)!r} has none for {missing[0]}{more}; add them.")
    return {name: folder / mask for name, mask in found.items() if mask is not None}


def _target_names(names: Sequence[str]) -> dict[str, str]:
    """The results' names: .png in place of the suffix, or behind it where two pictures differ in nothing else.

    Names that differ only in case count as the same, for some file systems hold them so.
    """
    shared = Counter(Path(name).stem.casefold() for name in names)

    def target(name: str) -> str:
        path = Path(name)
        alone = shared[path.stem.casefold()] == 1 or path.suffix == ".png"
        return f"{path.stem if alone else name}.png"

    return {name: target(name) for name in names}
