"""The two git commands that installing needs, run so that they cannot ask, hang or run anything else.

Arguments are lists, never a shell's string. Submodules are not fetched, prompts are off, and only the one transport
that the source calls for is allowed.
"""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from webui.core.errors import ResourceError, UserError
from webui.extensions.sources import Source

# Set by git itself for its hooks; inherited, they would point our clone at somebody else's repository.
_INHERITED = (
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_COMMON_DIR",
    "GIT_NAMESPACE",
    "GIT_PREFIX",
)


def clone(source: Source, target: Path, *, git: str = "git", timeout_s: float) -> str:
    """Clones `source` into `target`, which does not exist yet, and returns the full hash of the commit checked out.

    Raises `UserError` with git's own last words when it fails or takes longer than `timeout_s` seconds, `ResourceError`
    when there is no git. What is left in `target` then is the caller's to remove.
    """
    # --no-local: a local clone otherwise copies or links object files, symbolic links among them (CVE-2022-39253).
    options = ["--quiet", "--no-local", "--no-recurse-submodules", "--template="]
    _run([git, "clone", *options, "--", source.location, str(target)], source, timeout_s)
    return _run([git, "-C", str(target), "rev-parse", "--verify", "HEAD"], source, timeout_s).strip()


def _environment(source: Source) -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if name not in _INHERITED}
    environment["GIT_TERMINAL_PROMPT"] = "0"
    environment["GIT_ALLOW_PROTOCOL"] = "file" if source.local else "https:ssh"
    environment["GIT_ASKPASS"] = environment["SSH_ASKPASS"] = ""
    environment.setdefault("GIT_SSH_COMMAND", "ssh -o BatchMode=yes")
    return environment


def _run(command: list[str], source: Source, timeout_s: float) -> str:
    try:
        process = subprocess.Popen(
            command,
            env=_environment(source),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        raise ResourceError(f"git could not be started ({error}); install git and try again.") from error
    with process:
        try:
            out, err = process.communicate(timeout=timeout_s)
        except BaseException as error:
            # The whole group: git's own children (ssh, git-remote-https) would hold the pipes open and go on.
            os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise UserError(f"{source.location} was not fetched within {timeout_s:g} s; try again.") from error
            raise
    if process.returncode != 0:
        last = "".join(c if c.isprintable() else " " for c in err.strip()[-300:])
        raise UserError(f"git could not clone {source.location}: {last or 'it said nothing'}")
    return out
