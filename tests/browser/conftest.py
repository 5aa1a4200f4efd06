"""One server for all browser tests, a browser for each module, and a page of one's own for each test."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PATIENCE_MS = 90_000  # machines that run tests are often busy
FAKE_SERVER = Path(__file__).with_name("fake_server.py")
CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A running server: its address and the folder it works in."""

    address: str
    root: Path
    process: subprocess.Popen[str]

    def stop(self) -> None:
        """Ends the server as Ctrl-C would."""
        self.process.terminate()
        self.process.wait(30)
        if self.process.stdout is not None:
            self.process.stdout.close()


def _environment() -> dict[str, str]:
    # pip finds nothing: no test asks a registry for anything.
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "PIP_NO_INDEX": "1"}


@pytest.fixture(scope="session")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Served]]:
    """serve(auth="user:password") starts a server over the drawing engine; it ends with the session."""
    running: list[Served] = []

    def start(*, root: Path | None = None, auth: str = "") -> Served:
        folder = root or tmp_path_factory.mktemp("atelier")
        with (folder / "server.log").open("a") as log:
            process = subprocess.Popen(
                [sys.executable, str(FAKE_SERVER), str(folder), "0", auth],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=REPOSITORY,
                env=_environment(),
            )
        line = process.stdout.readline() if process.stdout is not None else ""
        assert line, (folder / "server.log").read_text()
        served = Served(address=f"http://127.0.0.1:{json.loads(line)['port']}/", root=folder, process=process)
        running.append(served)
        return served

    yield start
    for served in running:
        served.stop()


@pytest.fixture(scope="session")
def page_server(serve: Callable[..., Served]) -> Served:
    """The server that most tests share."""
    return serve()


@pytest.fixture(scope="module")
def browser():
    """Debian's chromium; playwright's own cannot be downloaded everywhere.

    It ends with its module: playwright keeps an event loop running in this thread, and other tests want their own.
    """
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


@pytest.fixture
def new_page(browser):
    """new_page() opens a page with a browser memory of its own; script errors on any of them fail the test."""
    contexts = []
    faults: list[str] = []

    def make(**options):
        context = browser.new_context(viewport={"width": 1280, "height": 900}, **options)
        context.set_default_timeout(PATIENCE_MS)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        return page

    yield make
    for context in contexts:
        context.close()
    assert not faults


@pytest.fixture
def hold(page_server: Served) -> Iterator[Path]:
    """While this file is there, the shared server's jobs stay half-way, or before the end of the step it names."""
    file = page_server.root / "hold"
    file.touch()
    yield file
    file.unlink(missing_ok=True)


@pytest.fixture
def page(new_page, page_server: Served):
    """The page, ready to be typed into."""
    opened = new_page()
    opened.goto(page_server.address)
    opened.wait_for_selector("#txt2img_prompt textarea")
    opened.wait_for_selector(".engine-status[data-phase=ready]")
    return opened
