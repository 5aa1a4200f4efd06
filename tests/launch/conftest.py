"""launch.py as a module, and small servers to supervise: they die when their scenario says so."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def launch() -> ModuleType:
    spec = importlib.util.spec_from_file_location("atelier_launch", ROOT / "launch.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def fake_server(tmp_path: Path):
    """Writes a server that runs `body`; returns its command and the file that lists the arguments of each start."""

    def make(body: str) -> tuple[list[str], Path]:
        starts = tmp_path / "starts"
        script = tmp_path / "server.py"
        script.write_text(
            "import os, pathlib, signal, sys, time\n"
            f"starts = pathlib.Path({str(starts)!r})\n"
            "with starts.open('a') as file:\n"
            "    file.write(' '.join(sys.argv[1:]) + '\\n')\n"
            "count = len(starts.read_text().splitlines())\n"
            f"{body}\n"
        )
        return [sys.executable, str(script), "--port", "1"], starts

    return make
