"""What can be known of an extension without running it: its docstring, version, hooks, and how it was installed.

Read by parsing extension.py, never by importing it, so that a disabled or freshly installed extension can be shown to
the person who decides whether its code may run.
"""

from __future__ import annotations

import ast
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

from webui.core import durable

ENTRY_FILE = "extension.py"
RECORD_FILE = ".atelier-install.json"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What extension.py says of itself: the docstring's first paragraph, `__version__`, the hooks it implements."""

    text: str = ""
    version: str = ""
    hooks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallRecord:
    """Where an installed extension came from; `commit` is the full hash that was checked out, "" for a plain folder."""

    source: str = ""
    commit: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtensionView:
    """One extension as the page lists it.

    `enabled` is what the settings say, `loaded` whether its hooks are called now; `error` is a sentence about its last
    crash since it was loaded. `source` and `commit` are empty for a folder that was put there by hand.
    """

    name: str
    enabled: bool
    loaded: bool
    path: Path
    description: str
    version: str
    hooks: tuple[str, ...]
    source: str
    commit: str
    error: str | None


def describe(folder: Path) -> Description:
    """What `folder`/extension.py says of itself; an empty description when it cannot be read or parsed."""
    try:
        tree = ast.parse((folder / ENTRY_FILE).read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError) as error:
        _log.info("Extension %s cannot be described: %s", folder.name, error)
        return Description()
    text = " ".join((ast.get_docstring(tree) or "").split("\n\n")[0].split())
    version = next((found for node in tree.body if (found := _version(node)) is not None), "")
    hooks = [n.name for n in tree.body if isinstance(n, ast.FunctionDef) and n.name.startswith("atelier_")]
    return Description(text=text, version=version, hooks=tuple(hooks))


def _version(node: ast.stmt) -> str | None:
    match node:
        case ast.Assign(targets=[ast.Name(id="__version__")], value=ast.Constant(value=str(version))):
            return version
    return None


def write_record(folder: Path, record: InstallRecord) -> None:
    """Writes `record` into `folder` by replacing a file, so that a link of that name is not followed."""
    durable.replace_file(folder / RECORD_FILE, json.dumps(asdict(record), indent=2).encode())


def read_record(folder: Path) -> InstallRecord:
    """What `write_record` wrote; empty when there is no readable record."""
    try:
        found = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
        return InstallRecord(source=str(found["source"]), commit=str(found["commit"]))
    except FileNotFoundError:
        return InstallRecord()
    except (OSError, ValueError, KeyError, TypeError) as error:
        _log.warning("The install record of extension %s cannot be read: %s", folder.name, error)
        return InstallRecord()
