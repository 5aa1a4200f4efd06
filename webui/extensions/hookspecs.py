"""The hooks that an extension may implement, and the types that pass through them.

This page is the contract with extensions: docs/extensions.md repeats it in prose and a test holds both together. An
implementation may leave out arguments that it does not need. Who calls the hooks and what happens when one crashes is
the business of `webui.extensions.host`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import pluggy
from PIL import Image

from webui.core.errors import UserError
from webui.core.events import Step
from webui.core.requests import Request

PROJECT = "atelier"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

SettingValue = bool | int | float | str
SettingKind = Literal["bool", "int", "float", "str", "choice"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tab:
    """A tab of the page. `build` is called once inside the tab's own gradio context and adds the components.

    `id` is unique among the tabs of one extension. The page is built when Atelier starts, so a tab appears and goes
    with a restart.
    """

    title: str
    id: str
    build: Callable[[], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtensionSetting:
    """A value that the person at the page may set, kept in the settings file under the extension's name.

    `choices` belongs to kind "choice" alone; `minimum` and `maximum` (inclusive) to "int" and "float".
    Raises `UserError` when the declaration contradicts itself, such as a default outside the range.
    """

    key: str
    label: str
    default: SettingValue
    kind: SettingKind
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    help: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.key):
            raise UserError(f"Setting key {self.key!r} is not made of small letters, digits and underscores.")
        if self.kind not in get_args(SettingKind):
            raise UserError(f"Setting {self.key} has kind {self.kind!r}; choose one of {get_args(SettingKind)}.")
        if (self.kind == "choice") != bool(self.choices):
            raise UserError(f"Setting {self.key} is of kind {self.kind!r}; choices go with kind 'choice', and only so.")
        self.check(self.default)

    def check(self, value: object) -> SettingValue:
        """`value` as this setting keeps it (a whole float becomes an int for kind "int"), or raises `UserError`."""
        if self.kind == "bool" and isinstance(value, bool):
            return value
        if self.kind == "str" and isinstance(value, str):
            return value
        if self.kind == "choice" and isinstance(value, str) and value in self.choices:
            return value
        if self.kind in {"int", "float"} and isinstance(value, int | float) and not isinstance(value, bool):
            return self._check_number(value)
        raise UserError(f"{self.label} is {value!r}; it must be {self._wanted()}.")

    def _check_number(self, value: float) -> SettingValue:
        # Without limits of its own a number stays where a float is exact to one; this refuses nan and infinity too.
        low = -(2**53) if self.minimum is None else self.minimum
        high = 2**53 if self.maximum is None else self.maximum
        if not low <= value <= high or (self.kind == "int" and value != int(value)):
            raise UserError(f"{self.label} is {value!r}; it must be {self._wanted()}.")
        return int(value) if self.kind == "int" else float(value)

    def _wanted(self) -> str:
        if self.kind == "choice":
            return f"one of {', '.join(self.choices)}"
        words = {"bool": "yes or no", "int": "a whole number", "float": "a number", "str": "text"}[self.kind]
        low = "" if self.minimum is None else f" from {self.minimum:g}"
        high = "" if self.maximum is None else f" up to {self.maximum:g}"
        return words + low + high


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtensionContext:
    """What an extension knows of itself: its folder's name, the folder, and `value(key)`, its settings as they are now.

    `value` may be called from any thread and raises `ExtensionError` for a key that `atelier_settings` did not declare.
    """

    name: str
    folder: Path
    value: Callable[[str], SettingValue]


@hookspec
def atelier_tabs(context: ExtensionContext) -> list[Tab]:
    """The tabs to add to the page. Called while the page is being built."""
    ...


@hookspec
def atelier_settings() -> list[ExtensionSetting]:
    """The settings to offer. Called once, when the extension is loaded."""
    ...


@hookspec
def atelier_before_job(request: Request, context: ExtensionContext) -> Request | None:
    """The request to run in place of `request`, or None to leave it.

    Called in the worker's thread before the engine starts, and again when a job resumes after a crash. The answer must
    be a valid request of the same task: use `dataclasses.replace`.
    """
    ...


@hookspec
def atelier_on_step(request: Request, step: Step, context: ExtensionContext) -> None:
    """Called in the worker's thread after each denoising step or upscaled tile; what it takes, the picture waits."""
    ...


@hookspec
def atelier_process_image(image: Image.Image, request: Request, context: ExtensionContext) -> Image.Image | None:
    """The picture to save in place of `image`, or None to leave it. `image` is a copy that may be drawn on.

    Called in the worker's thread for each finished picture before it is saved. Extensions are called one after the
    other, in the order of their names, and each sees what the one before made.
    """
    ...


@hookspec
def atelier_after_job(request: Request, state: str, context: ExtensionContext) -> None:
    """Called once when the job ends; `state` is "finished", "failed" or "cancelled"."""
    ...
