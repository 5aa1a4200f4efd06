"""Loads extensions, calls their hooks, keeps their settings – and survives every one of them.

A crash, at import or in a hook, is logged with its traceback, kept as the extension's `error`, and costs that one
call's result only: the other extensions and the job go on. The host decides nothing about who may change it (see
`webui.extensions.access`) and never fetches code (see `webui.extensions.installer`).

Thread rule: any thread may call anything. Hooks run in the caller's thread; loading, enabling and disabling take turns.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pluggy
from PIL import Image

from webui.core.errors import ExtensionError, UserError
from webui.core.events import Step
from webui.core.requests import Request
from webui.extensions import answers, hookspecs, loader
from webui.extensions.hookspecs import ExtensionContext, ExtensionSetting, SettingValue, Tab
from webui.extensions.installer import Installer
from webui.extensions.views import ENTRY_FILE, ExtensionView, describe, read_record
from webui.settings.store import SettingsStore

Answer = TypeVar("Answer")

_log = logging.getLogger(__name__)


class ExtensionHost:
    """The extensions of one folder. Implements `webui.core.ports.JobHooks`.

    Which extensions are off, and the values of their settings, live in `store`; everything else is read from `folder`.
    """

    def __init__(self, folder: Path, store: SettingsStore, *, installer: Installer | None = None) -> None:
        self._folder = folder
        self._store = store
        self._installer = installer or Installer(folder)
        self._lock = threading.RLock()
        # For reading a list in the store, changing and writing it; nothing else is waited for while it is held.
        self._store_lock = threading.Lock()
        self._plugins = pluggy.PluginManager(hookspecs.PROJECT)
        self._plugins.add_hookspecs(hookspecs)
        # Single items are set and deleted, never read back to be changed, so readers need no lock.
        self._settings: dict[str, tuple[ExtensionSetting, ...]] = {}
        self._errors: dict[str, str] = {}

    # --- what there is ---------------------------------------------------------------------------------------------

    def extensions(self) -> tuple[ExtensionView, ...]:
        """Every extension in the folder, in the order of their names, read anew; runs no code of theirs."""
        disabled = self._store.current.disabled_extensions
        return tuple(self._view(path, enabled=path.name not in disabled) for path in self._found())

    def error(self, name: str) -> str | None:
        """A sentence about the last crash of an extension since it was loaded, None when there was none."""
        return self._errors.get(name)

    def tabs(self) -> tuple[tuple[str, Tab], ...]:
        """(extension name, tab) for each tab that loaded extensions add.

        `build` of these tabs never raises: a crash ends that tab's building, and `error(name)` then has the sentence
        to show in its place.
        """
        found = []
        for name, hook in self._hooks("atelier_tabs"):
            for tab in self._attempt(name, hook, answers.tabs, context=self._context(name)) or ():
                found.append((name, dataclasses.replace(tab, build=partial(self._build, name, tab))))
        return tuple(found)

    # --- on and off ------------------------------------------------------------------------------------------------

    def load(self) -> None:
        """Loads every enabled extension that is not loaded yet, and drops those whose folder has gone.

        An extension that crashes is left out and named by its `error`; it is tried again at the next start.
        """
        with self._lock:
            self._installer.sweep()
            found = {path.name: path for path in self._found()}
            for name in [name for name, _ in self._plugins.list_name_plugin() if name not in found]:
                self._unload(name)
            for name, path in found.items():
                if name not in self._store.current.disabled_extensions and not self._plugins.has_plugin(name):
                    self._load(path)

    def enable(self, name: str) -> str:
        """Switches an extension on, now and at every start; returns a sentence for the page.

        Raises `UserError` when there is none of that name, `ExtensionError` when it crashes while it is loaded. It
        stays enabled then, to be tried again by `reload` or at the next start.
        """
        with self._lock:
            path = self._path(name)
            self._set_disabled(name, disabled=False)
            if not self._plugins.has_plugin(name) and not self._load(path):
                raise ExtensionError(self._errors[name])
            return f"{name} is enabled.{self._about_tabs(name, 'Its tab appears')}"

    def disable(self, name: str) -> str:
        """Switches an extension off, now and at every start; returns a sentence. Raises `UserError` as `enable`."""
        with self._lock:
            self._path(name)
            self._set_disabled(name, disabled=True)
            about_tabs = self._about_tabs(name, "Its tab goes")
            self._unload(name)
            return f"{name} is disabled.{about_tabs}"

    def reload(self, name: str) -> str:
        """Runs an enabled extension's code anew; returns a sentence and raises as `enable`."""
        with self._lock:
            self._path(name)
            if name in self._store.current.disabled_extensions:
                raise UserError(f"Extension {name!r} is disabled; enable it first.")
            self._unload(name)
            return self.enable(name)

    # --- in and out ------------------------------------------------------------------------------------------------

    def install(self, source: str) -> str:
        """Fetches an extension (see `Installer.install`) and leaves it disabled, so that none of its code runs yet.

        Returns its name. The person can then read what it says of itself in `extensions()`, and enable it.
        """
        # Disabled before it appears: a start or a load in between must not run it.
        return self._installer.install(source, arriving=partial(self._set_disabled, disabled=True))

    def remove(self, name: str) -> None:
        """Stops an extension and deletes it (see `Installer.remove`); the values of its settings are kept.

        Raises `UserError` as `enable`, and `ResourceError` when it cannot be deleted; it is disabled then.
        """
        self.disable(name)
        self._installer.remove(name)
        self._set_disabled(name, disabled=False)

    # --- settings --------------------------------------------------------------------------------------------------

    def settings(self) -> Mapping[str, tuple[ExtensionSetting, ...]]:
        """The settings that each loaded extension declares, by its name; extensions without any are left out."""
        return {name: self._settings[name] for name in sorted(self._settings) if self._settings[name]}

    def value(self, name: str, key: str) -> SettingValue:
        """What a setting is now: the stored value, or the default where there is none or one that does not fit.

        A misfit, such as a hand-edited file can hold, is reported when the extension is loaded. Raises
        `ExtensionError` for a setting that was not declared.
        """
        setting = self._setting(name, key)
        try:
            return setting.check(self._stored(name).get(key, setting.default))
        except UserError:
            return setting.default

    def save(self, name: str, values: Mapping[str, object]) -> None:
        """Checks and stores some of an extension's settings, all or none. Raises `UserError` for one that misfits."""
        checked = {key: self._setting(name, key).check(value) for key, value in values.items()}
        with self._store_lock:
            everything = dict(self._store.current.extensions)
            everything[name] = {**self._stored(name), **checked}
            self._store.update(extensions=everything)

    # --- webui.core.ports.JobHooks ---------------------------------------------------------------------------------

    def before_job(self, request: Request) -> Request:
        """The request to run, after every extension had its say. Never raises."""
        for name, hook in self._hooks("atelier_before_job"):
            accept = partial(answers.request_like, request)
            request = self._attempt(name, hook, accept, request=request, context=self._context(name)) or request
        return request

    def on_step(self, request: Request, step: Step) -> None:
        """Tells every extension of a step. Never raises."""
        for name, hook in self._hooks("atelier_on_step"):
            self._attempt(name, hook, _ignored, request=request, step=step, context=self._context(name))

    def process_image(self, image: Image.Image, request: Request) -> Image.Image:
        """The picture to save, after every extension had its turn. Never raises, never changes `image` itself."""
        for name, hook in self._hooks("atelier_process_image"):
            # Each gets a copy: one that crashes half-way has then spoilt nothing.
            arguments = {"image": image.copy(), "request": request, "context": self._context(name)}
            image = self._attempt(name, hook, answers.picture, **arguments) or image
        return image

    def after_job(self, request: Request, state: str) -> None:
        """Tells every extension that the job is over. Never raises."""
        for name, hook in self._hooks("atelier_after_job"):
            self._attempt(name, hook, _ignored, request=request, state=state, context=self._context(name))

    # --- inside ----------------------------------------------------------------------------------------------------

    def _found(self) -> list[Path]:
        if not self._folder.is_dir():
            return []
        folders = (path for path in self._folder.iterdir() if not path.name.startswith(".") and path.is_dir())
        return sorted(path for path in folders if (path / ENTRY_FILE).is_file())

    def _path(self, name: str) -> Path:
        for path in self._found():
            if path.name == name:
                return path
        raise UserError(f"There is no extension {name!r} in {self._folder}.")

    def _view(self, path: Path, *, enabled: bool) -> ExtensionView:
        about, record = describe(path), read_record(path)
        return ExtensionView(
            name=path.name,
            enabled=enabled,
            loaded=self._plugins.has_plugin(path.name),
            path=path,
            description=about.text,
            version=about.version,
            hooks=about.hooks,
            source=record.source,
            commit=record.commit,
            error=self._errors.get(path.name),
        )

    def _context(self, name: str) -> ExtensionContext:
        return ExtensionContext(name=name, folder=self._folder / name, value=partial(self.value, name))

    def _load(self, path: Path) -> bool:
        """Imports and registers one extension; False when it crashed."""
        name = path.name
        self._errors.pop(name, None)
        try:
            plugin = loader.import_extension(path)
            self._plugins.register(plugin, name)
            self._refuse_wrappers(name)
            self._plugins.check_pending()
        except BaseException as error:
            self._unload(name)
            self._crashed(name, "while it was loaded", error)
            return False
        self._settings[name] = ()
        for _, hook in [item for item in self._hooks("atelier_settings") if item[0] == name]:
            self._settings[name] = self._attempt(name, hook, answers.settings) or ()
        self._report_misfits(name)
        _log.info("Loaded extension %s", name)
        return True

    def _unload(self, name: str) -> None:
        if self._plugins.has_plugin(name):
            self._plugins.unregister(name=name)
        self._settings.pop(name, None)
        self._errors.pop(name, None)
        loader.forget(self._folder / name)

    def _refuse_wrappers(self, name: str) -> None:
        """Each implementation is called by itself, so that its crash is its own; a wrapper has nothing to wrap then."""
        for caller in self._plugins.get_hookcallers(self._plugins.get_plugin(name)) or []:
            for hook in caller.get_hookimpls():
                if hook.plugin_name == name and (hook.wrapper or hook.hookwrapper):
                    raise ExtensionError(f"{caller.name} is a hook wrapper, which Atelier does not call")

    def _hooks(self, hook: str) -> list[tuple[str, pluggy.HookImpl]]:
        """(extension name, implementation) in the order of names; `tryfirst` and `trylast` go before and behind."""
        found: list[pluggy.HookImpl] = getattr(self._plugins.hook, hook).get_hookimpls()
        found.sort(key=lambda one: (not one.tryfirst, one.trylast, one.plugin_name))
        return [(one.plugin_name, one) for one in found]

    def _attempt(
        self, name: str, hook: pluggy.HookImpl, accept: Callable[[object], Answer], **arguments: Any
    ) -> Answer | None:
        """Calls one implementation; its accepted answer, or None when it gave none, a wrong one, or crashed."""
        try:
            answer = hook.function(*(arguments[argument] for argument in hook.argnames))
            return None if answer is None else accept(answer)
        except BaseException as error:
            self._crashed(name, f"in {hook.function.__name__}", error)
            return None

    def _build(self, name: str, tab: Tab) -> None:
        try:
            tab.build()
        except BaseException as error:
            self._crashed(name, f"in building its tab {tab.title!r}", error)

    def _crashed(self, name: str, where: str, error: BaseException) -> None:
        """Records and logs a crash, whatever was raised: SystemExit would end the worker. Ctrl-C goes through."""
        if isinstance(error, KeyboardInterrupt):
            raise error
        sentence = f"Extension {name!r} failed {where} ({type(error).__name__}: {_said(error)})."
        # A hook that fails at every step fills the log with its traceback once.
        repeated = self._errors.get(name) == sentence
        self._errors[name] = sentence
        _log.log(logging.DEBUG if repeated else logging.ERROR, "%s", sentence, exc_info=None if repeated else error)

    def _set_disabled(self, name: str, *, disabled: bool) -> None:
        with self._store_lock:
            names = [other for other in self._store.current.disabled_extensions if other != name]
            self._store.update(disabled_extensions=sorted([*names, name] if disabled else names))

    def _about_tabs(self, name: str, what: str) -> str:
        has_tabs = any(owner == name for owner, _ in self._hooks("atelier_tabs"))
        return f" {what} when Atelier is restarted." if has_tabs else ""

    def _stored(self, name: str) -> Mapping[str, Any]:
        return self._store.current.extensions.get(name, {})

    def _setting(self, name: str, key: str) -> ExtensionSetting:
        for setting in self._settings.get(name, ()):
            if setting.key == key:
                return setting
        raise ExtensionError(f"Extension {name!r} has no setting {key!r}; it is not loaded or did not declare it.")

    def _report_misfits(self, name: str) -> None:
        for setting in self._settings[name]:
            try:
                setting.check(self._stored(name).get(setting.key, setting.default))
            except UserError as error:
                self._errors[name] = f"{error} Its default {setting.default!r} is used."
                _log.warning("Extension %s: %s", name, self._errors[name])


def _said(error: BaseException) -> str:
    try:
        return str(error) or "it gave no reason"
    except Exception:
        return "its message cannot be shown"


def _ignored(_answer: object) -> None:
    """For hooks whose answer means nothing."""
