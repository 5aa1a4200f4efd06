"""The launcher restarts what a signal killed, within a limit, and passes on the wish to stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_an_ordinary_exit_ends_it_with_that_code(launch, fake_server):
    command, starts = fake_server("sys.exit(3)")

    assert launch.Supervisor(command).run() == 3
    assert starts.read_text().splitlines() == ["--port 1"]


def test_a_server_killed_by_a_signal_is_started_again_without_a_browser(launch, fake_server, capsys):
    command, starts = fake_server("if count == 1: os.kill(os.getpid(), signal.SIGKILL)")

    assert launch.Supervisor(command).run() == 0
    assert starts.read_text().splitlines() == ["--port 1", "--port 1 --no-browser"]
    assert "died of SIGKILL; starting it again (1 of 5)" in capsys.readouterr().out


def test_it_gives_up_after_too_many_deaths(launch, fake_server, capsys):
    command, starts = fake_server("os.kill(os.getpid(), signal.SIGSEGV)")

    assert launch.Supervisor(command, restarts=2).run() == 1
    assert len(starts.read_text().splitlines()) == 3
    assert "SIGSEGV, 3 times within 5 minutes; giving up" in capsys.readouterr().out


def test_deaths_long_ago_do_not_count(launch, fake_server):
    command, starts = fake_server("os.kill(os.getpid(), signal.SIGKILL) if count < 5 else sys.exit(0)")
    times = iter([0.0, 1000.0, 2000.0, 3000.0])

    assert launch.Supervisor(command, restarts=1, clock=lambda: next(times)).run() == 0
    assert len(starts.read_text().splitlines()) == 5


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_was_told_to_stop_is_not_started_again(launch, fake_server, number):
    command, starts = fake_server(f"signal.signal({int(number)}, signal.SIG_DFL); os.kill(os.getpid(), {int(number)})")

    assert launch.Supervisor(command).run() == 0
    assert len(starts.read_text().splitlines()) == 1


def _supervised(command: list[str], *, grace_s: float) -> subprocess.Popen[str]:
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import launch;"
        f"sys.exit(launch.Supervisor({command!r}, grace_s={grace_s}).run())"
    )
    return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)


def _wait_for(file: Path) -> None:
    for _ in range(500):
        if file.exists():
            return
        time.sleep(0.02)
    pytest.fail(f"{file} did not appear")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_wish_to_stop_reaches_the_server_and_is_waited_for(fake_server, tmp_path, number):
    body = (
        "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.3), pathlib.Path('stopped').touch(), sys.exit(0)))\n"
        "pathlib.Path('ready').touch()\n"
        "time.sleep(60)"
    )
    command, starts = fake_server(f"os.chdir({str(tmp_path)!r})\n{body}")
    launcher = _supervised(command, grace_s=30)
    _wait_for(tmp_path / "ready")

    launcher.send_signal(number)
    output, _ = launcher.communicate(timeout=30)

    assert launcher.returncode == 0
    assert (tmp_path / "stopped").exists()
    assert len(starts.read_text().splitlines()) == 1
    assert "ending it" not in output


def test_a_server_that_will_not_stop_is_killed_after_the_grace(fake_server, tmp_path):
    command, starts = fake_server(
        f"os.chdir({str(tmp_path)!r}); signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "pathlib.Path('ready').touch()\n"
        "time.sleep(60)"
    )
    launcher = _supervised(command, grace_s=0.3)
    _wait_for(tmp_path / "ready")

    launcher.terminate()
    output, _ = launcher.communicate(timeout=30)

    assert launcher.returncode == 0
    assert len(starts.read_text().splitlines()) == 1
    assert "did not stop within 0.3 seconds; ending it" in output


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells a child of its parent's death")
def test_a_launcher_that_is_killed_takes_the_server_with_it(fake_server, tmp_path):
    command, _ = fake_server(
        f"os.chdir({str(tmp_path)!r})\n"
        "signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path('stopped').touch(), sys.exit(0)))\n"
        "pathlib.Path('pid').write_text(str(os.getpid())); pathlib.Path('ready').touch()\n"
        "time.sleep(60)"
    )
    launcher = _supervised(command, grace_s=30)
    _wait_for(tmp_path / "ready")

    launcher.kill()
    launcher.communicate(timeout=30)

    _wait_for(tmp_path / "stopped")
    assert int((tmp_path / "pid").read_text()) != os.getpid()
