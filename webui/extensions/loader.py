"""Imports the code of one extension, under a package name of its own.

The folder becomes a package, so that `from . import other` works inside it and two extensions may both have a
`drawing.py`. Nothing is put on sys.path. Extensions are trusted code once enabled: this keeps names apart, it is no
sandbox.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

from webui.core.errors import ExtensionError
from webui.extensions.views import ENTRY_FILE


def package_name(folder: Path) -> str:
    """The name of `folder`'s package: readable in a traceback, and different for every folder."""
    digest = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]
    return f"atelier_extension_{re.sub(r'[^0-9A-Za-z_]', '_', folder.name)}_{digest}"


def import_extension(folder: Path) -> ModuleType:
    """Runs `folder`/__init__.py, if there is one, then `folder`/extension.py, and returns the latter's module.

    Code of an earlier import is dropped first, so this is also how an extension is reloaded. Lets through whatever the
    code raises, SystemExit included, after dropping the half-made modules.
    """
    if not (folder / ENTRY_FILE).is_file():
        raise ExtensionError(f"Extension {folder.name!r} has no {ENTRY_FILE}; remove it or add that file.")
    package = package_name(folder)
    forget(folder)
    importlib.invalidate_caches()
    try:
        _make_package(package, folder)
        return importlib.import_module(f"{package}.{Path(ENTRY_FILE).stem}")
    except BaseException:
        forget(folder)
        raise


def _make_package(package: str, folder: Path) -> None:
    init = folder / "__init__.py"
    if not init.is_file():
        module = ModuleType(package)
        module.__path__ = [str(folder)]
        sys.modules[package] = module
        return
    spec = importlib.util.spec_from_file_location(package, init, submodule_search_locations=[str(folder)])
    if spec is None or spec.loader is None:
        raise ExtensionError(f"Extension {folder.name!r} cannot be imported from {init}.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[package] = module
    spec.loader.exec_module(module)


def forget(folder: Path) -> None:
    """Drops every module of the extension in `folder`, so that the next import runs its code anew."""
    package = package_name(folder)
    for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
        del sys.modules[name]
