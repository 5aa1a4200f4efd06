"""What may be typed as the source of an extension, and the folder name that follows from it.

Only forms that are known to be harmless to hand to git pass: https, ssh, the user@host:path of ssh, and absolute paths
on this machine. Everything that git could take for an option or a command of its own is refused before git sees it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from webui.core.errors import UserError

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9_-])?")
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?")
_SCP = re.compile(r"(?P<user>[A-Za-z0-9_][A-Za-z0-9_.-]*)@(?P<host>[A-Za-z0-9][A-Za-z0-9.-]*):(?P<path>[^-:\s][^:\s]*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A checked source: where git or the file system finds it, the extension's name, and whether it is local."""

    location: str
    name: str
    local: bool


def parse_source(text: str) -> Source:
    """Checks what was typed. A local path must be absolute (or begin with ~) and need not exist yet.

    Raises `UserError` for anything else than https://…, ssh://…, user@host:path and such a path, for an URL that
    carries a password, and for a last part that cannot be a folder's name.
    """
    text = text.strip()
    if not text or text.startswith("-") or not text.isprintable() or "::" in text:
        raise UserError(f"{text!r} is not a source of an extension; {_ADVICE}")
    if text.startswith(("/", "~")):
        path = _local_path(text)
        return Source(location=str(path), name=check_name(path.name.removesuffix(".git")), local=True)
    scp = _SCP.fullmatch(text)
    path = scp["path"] if scp else _url_path(text)
    name = path.rstrip("/").rsplit("/", 1)[-1].removesuffix(".git")
    return Source(location=text, name=check_name(name), local=False)


def check_name(name: str) -> str:
    """`name`, if it can be the name of a folder inside extensions/ and nothing else; raises `UserError`."""
    if not _NAME.fullmatch(name):
        raise UserError(
            f"{name!r} cannot be the name of an extension; it may have letters, digits, dots, dashes and underscores,"
            " and begins with a letter or digit. Rename the folder or repository."
        )
    return name


_ADVICE = "give an https:// or ssh:// address of a git repository, git@host:path, or an absolute path on this machine."


def _local_path(text: str) -> Path:
    try:
        return Path(text).expanduser().resolve()
    except (RuntimeError, OSError) as error:
        raise UserError(f"The path {text!r} cannot be followed ({error}); give an absolute path.") from error


def _url_path(text: str) -> str:
    try:
        parts = urlsplit(text)
        _ = parts.port  # reading it is what checks it
    except ValueError as error:
        raise UserError(f"{text!r} is not a valid address ({error}); {_ADVICE}") from error
    if parts.scheme not in {"https", "ssh"} or not _HOST.fullmatch(parts.hostname or ""):
        raise UserError(f"{text!r} is not a source of an extension; {_ADVICE}")
    if _has_secret(parts):
        # The address is not repeated here: it holds a secret, and messages end up in logs.
        raise UserError("The address holds a user name or password; keep those in git's credential helper instead.")
    return parts.path


def _has_secret(parts: SplitResult) -> bool:
    return parts.password is not None or (parts.scheme == "https" and parts.username is not None)
