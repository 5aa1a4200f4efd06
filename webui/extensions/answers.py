"""Checks what an extension's hook answered, before anything else of Atelier sees it.

Each function takes the answer and returns it in the form that the host passes on, or raises `ExtensionError` saying
what was wrong with it; the host treats that as a crash of the hook.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable

from PIL import Image

from webui.core.errors import ExtensionError
from webui.core.requests import Request
from webui.core.validation import validate, with_seed
from webui.extensions.hookspecs import ExtensionSetting, Tab


def tabs(answer: object) -> tuple[Tab, ...]:
    """A list of `Tab`s with different ids."""
    found = tuple(_all_of(Tab, answer))
    _unique("tab id", [tab.id for tab in found])
    return found


def settings(answer: object) -> tuple[ExtensionSetting, ...]:
    """A list of `ExtensionSetting`s with different keys."""
    found = tuple(_all_of(ExtensionSetting, answer))
    _unique("setting key", [setting.key for setting in found])
    return found


def request_like(original: Request, answer: object) -> Request:
    """A valid request of the task of `original`, its seed settled; raises `InvalidRequest` too."""
    if type(answer) is not type(original):
        raise ExtensionError(f"it answered {type(answer).__name__} where {type(original).__name__} was asked for")
    validate(answer)
    return with_seed(answer)


def picture(answer: object) -> Image.Image:
    """A PIL picture with pixels in it, decoded here so that a broken file fails now and not while it is saved."""
    if not isinstance(answer, Image.Image):
        raise ExtensionError(f"it answered {type(answer).__name__} where a PIL image was asked for")
    answer.load()
    if answer.mode not in {"RGB", "RGBA", "L"}:
        raise ExtensionError(f"it answered a picture of mode {answer.mode}, which must be converted to RGB first")
    if 0 in answer.size:
        raise ExtensionError(f"it answered an empty picture of {answer.width} × {answer.height} pixels")
    return answer


def _all_of(kind: type, answer: object) -> list:
    if not isinstance(answer, list | tuple) or not all(isinstance(item, kind) for item in answer):
        raise ExtensionError(f"it answered {answer!r} where a list of {kind.__name__} was asked for")
    return list(answer)


def _unique(what: str, found: Iterable[Hashable]) -> None:
    seen = set()
    for item in found:
        if item in seen:
            raise ExtensionError(f"it answered the {what} {item!r} twice")
        seen.add(item)
