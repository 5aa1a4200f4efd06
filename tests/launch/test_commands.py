"""What launch.py does with its own arguments, and that everything else reaches `python -m webui`."""

from __future__ import annotations

import argparse
import subprocess

import pytest


@pytest.fixture
def started(launch, monkeypatch):
    """Nothing is installed; the parts asked for and the commands that would run are noted."""
    parts: list[str] = []
    commands: list[list[str]] = []

    class Recorder:
        def __init__(self, command: list[str]) -> None:
            commands.append(["supervised", *command[1:]])

        def run(self) -> int:
            return 0

    monkeypatch.setattr(launch.Environment, "ensure", lambda self, part: parts.append(part))
    monkeypatch.setattr(launch, "Supervisor", Recorder)
    return parts, commands


def test_every_flag_reaches_the_server(launch, started):
    parts, commands = started

    assert launch.main(["--no-browser", "--port", "7861", "--auth", "a:b c"]) == 0

    assert parts == ["base"]
    assert commands == [["supervised", "-m", "webui", "--no-browser", "--port", "7861", "--auth", "a:b c"]]


def test_xformers_is_the_launchers_own(launch, started):
    parts, commands = started

    assert launch.main(["--xformers", "--share"]) == 0

    assert parts == ["base", "xformers"]
    assert commands == [["supervised", "-m", "webui", "--share"]]


def test_without_xformers_it_starts_all_the_same(launch, started, monkeypatch, capsys):
    _, commands = started

    def ensure(self, part):
        if part == "xformers":
            raise launch.LaunchError("xformers could not be installed: no wheel.")

    monkeypatch.setattr(launch.Environment, "ensure", ensure)

    assert launch.main(["--xformers"]) == 0
    assert commands == [["supervised", "-m", "webui"]]
    assert "no wheel. Atelier starts without it." in capsys.readouterr().out


def test_a_failed_installation_ends_with_a_sentence(launch, monkeypatch, capsys):
    def ensure(self, part):
        raise launch.LaunchError("The disk is full.")

    monkeypatch.setattr(launch.Environment, "ensure", ensure)

    assert launch.main([]) == 1
    assert capsys.readouterr().err == "error: The disk is full.\n"


def test_one_shot_commands_are_not_supervised(launch, started, monkeypatch):
    _, commands = started
    ran = []
    monkeypatch.setattr(
        launch.subprocess,
        "run",
        lambda command, **_: ran.append(command[1:]) or subprocess.CompletedProcess(command, 2),
    )

    assert launch.main(["infotext", "a.png"]) == 2
    assert ran == [["-m", "webui", "infotext", "a.png"]]
    assert commands == []


def test_every_command_but_serving_is_one_shot(launch):
    from webui.cli import make_parser

    groups = [action for action in make_parser()._actions if isinstance(action, argparse._SubParsersAction)]
    assert sorted(groups[0].choices) == sorted(launch.ONE_SHOT)


@pytest.mark.parametrize("failing", [None, "ruff", "pytest"])
def test_every_check_runs_and_any_failure_counts(launch, started, monkeypatch, capsys, failing):
    parts, _ = started
    ran = []

    def run(command, **options):
        ran.append(command)
        failed = failing is not None and any(failing in piece for piece in command)
        return subprocess.CompletedProcess(command, 1 if failed else 0)

    monkeypatch.setattr(launch, "ensure_chromium", lambda: None)
    monkeypatch.setattr(launch.subprocess, "run", run)

    assert launch.main(["test", "tests/core", "-k", "x"]) == (0 if failing is None else 1)

    assert parts == ["test"]
    assert len(ran) == 4
    assert ran[-1][1:] == ["-m", "pytest", "tests/core", "-k", "x"]
    summary = capsys.readouterr().out.split("── summary")[1].strip().splitlines()
    assert [line.split("  ")[0] for line in summary] == ["ruff check", "ruff format", "pyright", "pytest"]


@pytest.mark.parametrize(("cores", "workers", "threads"), [(1, "1", "1"), (2, "2", "1"), (3, "3", "1"), (16, "4", "4")])
def test_the_whole_suite_shares_the_cores(launch, started, monkeypatch, cores, workers, threads):
    ran = []

    def run(command, *, env, **options):
        ran.append((command[1:], env["OMP_NUM_THREADS"]))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(launch, "ensure_chromium", lambda: None)
    monkeypatch.setattr(launch.subprocess, "run", run)
    monkeypatch.setattr(launch.os, "cpu_count", lambda: cores)

    assert launch.main(["test"]) == 0

    assert ran[-1] == (["-m", "pytest", "-n", workers, "--dist", "loadfile"], threads)


def test_an_old_python_is_told_so(launch, monkeypatch, capsys):
    monkeypatch.setattr(launch.sys, "version_info", (3, 9, 2))

    with pytest.raises(SystemExit) as ended:
        launch.leave_if_too_old()

    assert ended.value.code == 1
    assert "needs Python 3.10 or newer" in capsys.readouterr().err
