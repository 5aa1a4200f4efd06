"""The process ends with its exit code even while a thread is busy elsewhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )


def test_a_busy_thread_does_not_hold_the_process():
    done = run(
        "import threading\n"
        "from webui.cli import leave\n"
        "threading.Thread(target=threading.Event().wait).start()\n"
        "print('kept')\n"
        "leave(3)"
    )
    assert (done.returncode, done.stdout) == (3, "kept\n")


def test_alone_it_ends_in_the_ordinary_way():
    done = run("import atexit; from webui.cli import leave; atexit.register(print, 'tidied'); leave(2)")
    assert (done.returncode, done.stdout) == (2, "tidied\n")
