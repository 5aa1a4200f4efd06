#!/usr/bin/env python3
"""Starts Atelier with one command: makes .venv, installs the project into it, runs the server and watches over it.

    python3 launch.py [flags of python -m webui]    start the page, by default at http://127.0.0.1:7860
    python3 launch.py --xformers [flags]            the same, with xformers' attention kernels installed
    python3 launch.py test [arguments of pytest]    lint, types and every test
    python3 launch.py generate | infotext …         the commands of python -m webui, once

It owns what happens before the program can run and after it has died, and so uses only the standard library. A stamp
inside .venv says what was installed there; while it holds, a start installs nothing. Python 3.7 must be able to read
this file, to be told that it is too old.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

OLDEST_PYTHON = (3, 10)
ROOT = Path(__file__).resolve().parent
# Subcommands that end by themselves and are not restarted.
ONE_SHOT = ("convert", "doctor", "generate", "infotext", "inspect", "upscale")
RESTARTS = 5
RESTART_WINDOW_S = 300.0
GRACE_S = 25.0  # longer than the server gives its worker
ASKED_TO_STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
MOST_TEST_WORKERS = 4  # each holds torch and a model or two
LARGE_DOWNLOAD = re.compile(r"Downloading (\S+) \((\d+\.\d+ [MG]B)\)")


class LaunchError(Exception):
    """A sentence for the person at the terminal: what failed and what to do."""


def say(text: str) -> None:
    """One line on the terminal, at once."""
    print(text, flush=True)


class Environment:
    """The virtual environment in `.venv` and what is installed there.

    Parts are "base" (the project), "test" (its test extra, on top of base) and "xformers". Each has a stamp: the hash
    of everything that decides what pip would install.
    """

    def __init__(self, root: Path = ROOT) -> None:
        self.root = root
        self.folder = root / ".venv"
        self.python = self.folder / "bin" / "python"
        self.constraints = root / "constraints.txt"
        self.stamps = self.folder / "atelier-installed.json"
        self.log = root / "data" / "logs" / "install.log"

    def command(self, tool: str) -> str:
        """The path of a program that was installed into the environment."""
        return str(self.python.parent / tool)

    def ensure(self, part: str) -> None:
        """Makes the environment and installs `part` unless its stamp holds; raises `LaunchError`."""
        if self.installed(part):
            return
        self._make()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.log.write_text("", encoding="utf-8")
        if part == "xformers":
            # Without its dependencies, so that the torch that is here stays as it is; and never built from source,
            # which takes an hour and a CUDA toolkit.
            self._pip("xformers", ["--no-deps", "--only-binary=xformers", "xformers"])
        else:
            pins = len(set(re.findall(r"^[\w.-]+", self.constraints.read_text(encoding="utf-8"), re.MULTILINE)))
            say(f"Installing about {pins} packages; the first time this takes some minutes (details: {self.log}).")
            extra = "" if part == "base" else f"[{part}]"
            self._pip("Atelier", ["-e", f"{self.root}{extra}"])
            if part == "test":
                # Its samplers are the tests' reference; what it depends on trains models, and is not needed for that.
                self._pip("k-diffusion", ["--no-deps", "k-diffusion"])
        self._stamp(part)

    def fingerprint(self, part: str) -> str:
        """The hash of all that decides what is installed as `part`: both files, this Python, this folder."""
        digest = hashlib.sha256()
        for piece in (
            (self.root / "pyproject.toml").read_bytes(),
            self.constraints.read_bytes(),
            repr(sys.version_info[:2]).encode(),
            str(self.root).encode(),
            part.encode(),
        ):
            digest.update(hashlib.sha256(piece).digest())
        return digest.hexdigest()

    def _read_stamps(self) -> dict[str, str]:
        try:
            stamps = json.loads(self.stamps.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return stamps if isinstance(stamps, dict) else {}

    def installed(self, part: str) -> bool:
        """Whether the stamp of `part` holds, so that there is nothing to install."""
        stamps = self._read_stamps()
        # The test extra includes the project itself.
        parts = ("base", "test") if part == "base" else (part,)
        return self.python.exists() and any(stamps.get(name) == self.fingerprint(name) for name in parts)

    def _stamp(self, part: str) -> None:
        stamps = {name: value for name, value in self._read_stamps().items() if value == self.fingerprint(name)}
        stamps[part] = self.fingerprint(part)
        self.stamps.write_text(json.dumps(stamps), encoding="utf-8")

    def _make(self) -> None:
        """Makes the environment, anew if it belongs to another Python or does not run."""
        if self._runs():
            return
        if Path(sys.prefix).resolve() == self.folder.resolve():
            raise LaunchError("The environment in .venv is damaged; start launch.py with the system's Python.")
        say(f"Making a virtual environment in {self.folder} …")
        made = subprocess.run(
            [sys.executable, "-m", "venv", "--clear", str(self.folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if made.returncode == 0:
            return
        if "ensurepip" in made.stdout or "No module named venv" in made.stdout:
            package = f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"
            raise LaunchError(
                f"This Python has no venv module; on Debian or Ubuntu run 'apt install {package}', then start again."
            )
        reason = made.stdout.strip().splitlines()[-1] if made.stdout.strip() else f"exit code {made.returncode}"
        raise LaunchError(f"The virtual environment in {self.folder} could not be made: {reason}.")

    def _runs(self) -> bool:
        if not self.python.exists():
            return False
        probe = "import pip, sys; print(sys.version_info[:2] == " + repr(sys.version_info[:2]) + ")"
        try:
            answer = subprocess.run(
                [str(self.python), "-c", probe], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False
            )
        except OSError:
            return False
        return answer.stdout.strip() == b"True"

    def _pip(self, what: str, arguments: list[str]) -> None:
        """Runs pip under the constraints: its output goes to the log, its milestones to the terminal."""
        command = [str(self.python), "-m", "pip", "install", "--no-input", "-c", str(self.constraints), *arguments]
        quiet = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_PROGRESS_BAR": "off", "PYTHONUNBUFFERED": "1"}
        tail: collections.deque[str] = collections.deque(maxlen=400)
        with (
            self.log.open("a", encoding="utf-8", buffering=1) as log,
            subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env={**os.environ, **quiet},
            ) as pip,
        ):
            assert pip.stdout is not None
            for line in pip.stdout:
                log.write(line)
                tail.append(line.rstrip())
                news = milestone(line)
                if news:
                    say(f"  {news}")
        if pip.returncode != 0:
            shown = [line for line in tail if "is ignored: it is neither" not in line][-15:]
            say("\n".join(f"  | {line}" for line in shown))
            raise LaunchError(f"{what} could not be installed: {pip_failure(tail)} The whole story is in {self.log}.")


def milestone(line: str) -> str | None:
    """What a line of pip's output means to somebody who waits, or None."""
    large = LARGE_DOWNLOAD.search(line)
    if large and ("GB" in large.group(2) or float(large.group(2).split()[0]) >= 20):
        return f"downloading {large.group(1)}, {large.group(2)}"
    if line.startswith("Installing collected packages:"):
        return f"unpacking {line.count(',') + 1} packages"
    return None


def pip_failure(output: collections.deque[str]) -> str:
    """Why pip failed, as one sentence."""
    text = "\n".join(output)
    if "No space left on device" in text:
        return "the disk is full; free some space and start again."
    if re.search(r"NewConnectionError|name resolution|ReadTimeoutError|ConnectTimeout|Network is unreachable", text):
        return "the package index cannot be reached; check the network and start again."
    missing = re.search(r"No matching distribution found for (\S+)", text)
    if missing:
        return f"no package fits {missing.group(1)} on this Python and machine."
    errors = [line for line in output if line.lower().startswith("error")]
    return f"pip says {errors[-1]!r}." if errors else "pip failed."


class Supervisor:
    """Runs the server as a child, starts it again when a signal kills it, and passes on the wish to stop.

    An ordinary exit, whatever its code, ends the supervision: the server had its say. More than `restarts` deaths
    within `window_s` seconds end it too, for then something is wrong that starting again does not mend.
    """

    def __init__(
        self,
        command: list[str],
        *,
        restarts: int = RESTARTS,
        window_s: float = RESTART_WINDOW_S,
        grace_s: float = GRACE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.command = command
        self.restarts = restarts
        self.window_s = window_s
        self.grace_s = grace_s
        self.clock = clock
        self.stopping = False
        self.child: subprocess.Popen[bytes] | None = None

    def run(self) -> int:
        """Runs until the server ends for good; returns the exit code to leave with."""
        deaths: collections.deque[float] = collections.deque()
        command = self.command
        with self._signals():
            while not self.stopping:
                code = self._run_once(command)
                if code >= 0 or -code in ASKED_TO_STOP:
                    return max(code, 0)
                if self.stopping:
                    break
                name = signal.Signals(-code).name
                now = self.clock()
                deaths.append(now)
                while now - deaths[0] > self.window_s:
                    deaths.popleft()
                if len(deaths) > self.restarts:
                    say(
                        f"The server died of {name}, {len(deaths)} times within {self.window_s / 60:g} minutes; giving"
                        " up. Its last words above, or a lack of memory, are where to look."
                    )
                    return 1
                say(f"The server died of {name}; starting it again ({len(deaths)} of {self.restarts}).")
                # Whoever had the page open still has it.
                command = [*self.command, "--no-browser"]
        return 0

    def _run_once(self, command: list[str]) -> int:
        # A session of its own, so that Ctrl-C reaches the server once, through us.
        self.child = subprocess.Popen(command, start_new_session=True, preexec_fn=die_with_parent())
        if self.stopping:  # asked while the child was being born
            self.child.terminate()
        return self.child.wait()

    def _stop(self, number: int, frame: object) -> None:
        del number, frame
        if self.stopping:
            return
        self.stopping = True
        signal.setitimer(signal.ITIMER_REAL, self.grace_s)
        if self.child is not None:
            self.child.terminate()

    def _lose_patience(self, number: int, frame: object) -> None:
        del number, frame
        if self.child is not None and self.child.returncode is None:
            say(f"The server did not stop within {self.grace_s:g} seconds; ending it.")
            self.child.kill()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        handlers = {signal.SIGALRM: self._lose_patience, **dict.fromkeys(ASKED_TO_STOP, self._stop)}
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            for number, handler in before.items():
                signal.signal(number, handler)


def die_with_parent() -> Callable[[], None] | None:
    """On Linux, what a child does first so that it is told to stop when the launcher is killed; None elsewhere."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    pr_set_pdeathsig = 1

    def arrange() -> None:
        libc.prctl(pr_set_pdeathsig, signal.SIGTERM)

    return arrange


def ensure_chromium() -> None:
    """Installs Debian's chromium for the browser tests where that can be done without asking."""
    if shutil.which("chromium"):
        return
    is_root = hasattr(os, "geteuid") and os.geteuid() == 0
    apt = shutil.which("apt-get")
    if not is_root or apt is None:
        say("chromium is missing, and the browser tests need it; install it with 'apt-get install chromium'.")
        return
    say("Installing Debian's chromium for the browser tests …")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (["update"], ["install", "-y", "--no-install-recommends", "chromium"]):
        done = subprocess.run(
            [apt, "-q", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            check=False,
        )
        if done.returncode:
            lines = done.stdout.strip().splitlines() or [f"exit code {done.returncode}"]
            raise LaunchError(f"chromium could not be installed with apt-get: {lines[-1]}")


def run_checks(environment: Environment, pytest_arguments: list[str]) -> int:
    """Runs lint, format, types and tests, all of them whatever fails; returns 0 only if every one passed.

    The whole suite runs in a process a core, each with the tests of a file and its share of torch's threads.
    """
    cores = os.cpu_count() or 1
    workers = min(cores, MOST_TEST_WORKERS)
    together = ["-n", str(workers), "--dist", "loadfile"]
    variables = {**os.environ, "OMP_NUM_THREADS": str(cores // workers)}
    steps = {
        "ruff check": [environment.command("ruff"), "check", "."],
        "ruff format": [environment.command("ruff"), "format", "--check", "."],
        "pyright": [environment.command("pyright")],
        "pytest": [str(environment.python), "-m", "pytest", *(pytest_arguments or together)],
    }
    summary = []
    failed = False
    for name, command in steps.items():
        say(f"── {name}")
        start = time.monotonic()
        code = subprocess.run(command, cwd=environment.root, env=variables, check=False).returncode
        failed = failed or code != 0
        outcome = "passed" if code == 0 else f"FAILED (exit code {code})"
        summary.append(f"{name:<12} {time.monotonic() - start:6.1f} s  {outcome}")
    say("── summary")
    for line in summary:
        say(line)
    return 1 if failed else 0


def start(environment: Environment, arguments: list[str]) -> int:
    """Installs what is missing and runs `python -m webui` with `arguments`, supervised if it serves."""
    wants_xformers = "--xformers" in arguments
    arguments = [argument for argument in arguments if argument != "--xformers"]
    environment.ensure("base")
    if wants_xformers:
        try:
            environment.ensure("xformers")
        except LaunchError as error:
            say(f"{error} Atelier starts without it.")
    command = [str(environment.python), "-m", "webui", *arguments]
    if arguments and arguments[0] in ONE_SHOT:
        return subprocess.run(command, check=False).returncode
    return Supervisor(command).run()


def main(arguments: list[str]) -> int:
    """The command line; returns the exit code."""
    environment = Environment()
    try:
        if arguments and arguments[0] == "test":
            environment.ensure("test")
            ensure_chromium()
            return run_checks(environment, arguments[1:])
        if arguments and arguments[0] in ("-h", "--help"):
            say((__doc__ or "").split("\n\n")[1])
            if not environment.installed("base"):
                return 0
        return start(environment, arguments)
    except LaunchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130


def leave_if_too_old() -> None:
    """Ends with a sentence on a Python that Atelier does not run on."""
    if sys.version_info < OLDEST_PYTHON:
        _fail(f"Atelier needs Python {OLDEST_PYTHON[0]}.{OLDEST_PYTHON[1]} or newer; this is {sys.version.split()[0]}.")


def _fail(sentence: str) -> NoReturn:
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    leave_if_too_old()
    sys.exit(main(sys.argv[1:]))
