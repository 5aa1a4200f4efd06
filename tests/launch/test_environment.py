"""What is installed is stamped, so that a second start installs nothing, and a failing pip is explained."""

from __future__ import annotations

import collections
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project whose environment's Python is this one's, and whose pip only notes how it is called."""
    root = tmp_path / "project"
    (root / ".venv/bin").mkdir(parents=True)
    (root / "pyproject.toml").write_text("[project]\n")
    (root / "constraints.txt").write_text("# versions\nnumpy==2\ntorch==2.13.0\n")
    return root


@pytest.fixture
def pip(project: Path):
    """Puts a program in the place of .venv's Python: it records its arguments and does what `script` says."""
    calls = project / "calls"

    def install(script: str = "") -> Path:
        python = project / ".venv/bin/python"
        python.write_text(
            f'#!/bin/sh\nif [ "$1" = "-c" ]; then exec {sys.executable} "$@"; fi\necho "$@" >> {calls}\n{script}\n'
        )
        python.chmod(0o755)
        return calls

    return install


def test_the_second_start_installs_nothing(launch, project, pip, capsys):
    calls = pip()

    launch.Environment(project).ensure("base")
    launch.Environment(project).ensure("base")

    assert calls.read_text().splitlines() == [
        f"-m pip install --no-input -c {project}/constraints.txt -e {project}",
    ]
    assert "Installing about 2 packages" in capsys.readouterr().out


@pytest.mark.parametrize("file", ["pyproject.toml", "constraints.txt"])
def test_a_changed_file_installs_again(launch, project, pip, file):
    calls = pip()
    launch.Environment(project).ensure("base")

    (project / file).write_text("changed==1\n")
    launch.Environment(project).ensure("base")

    assert len(calls.read_text().splitlines()) == 2


def test_the_test_extra_covers_the_project_but_not_the_other_way_round(launch, project, pip):
    calls = pip()
    environment = launch.Environment(project)

    environment.ensure("test")
    environment.ensure("base")
    assert calls.read_text().splitlines() == [
        f"-m pip install --no-input -c {project}/constraints.txt -e {project}[test]",
        f"-m pip install --no-input -c {project}/constraints.txt --no-deps k-diffusion",
    ]

    environment.stamps.unlink()
    environment.ensure("base")
    environment.ensure("test")
    assert len(calls.read_text().splitlines()) == 5


def test_xformers_leaves_torch_alone(launch, project, pip):
    calls = pip()

    launch.Environment(project).ensure("xformers")

    assert "--no-deps --only-binary=xformers xformers" in calls.read_text()


def test_a_failed_installation_is_not_stamped_and_is_explained(launch, project, pip, capsys):
    calls = pip("echo 'ERROR: No matching distribution found for torch==2.13.0'; exit 1")
    environment = launch.Environment(project)

    with pytest.raises(launch.LaunchError, match=r"no package fits torch==2.13.0 .*install.log"):
        environment.ensure("base")

    assert not environment.installed("base")
    assert "| ERROR: No matching" in capsys.readouterr().out
    assert "No matching distribution" in (project / "data/logs/install.log").read_text()
    assert len(calls.read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("NewConnectionError: Failed to establish a new connection", "cannot be reached"),
        ("ERROR: Cannot install a and b", "pip says 'ERROR: Cannot install a and b'"),
        ("something odd", "pip failed."),
    ],
)
def test_the_reason_of_a_failure_is_one_sentence(launch, line, sentence):
    assert sentence in launch.pip_failure(collections.deque([line]))


@pytest.mark.parametrize(
    ("line", "news"),
    [
        ("  Downloading torch-2.13.0-cp311.whl (900.1 MB)\n", "downloading torch-2.13.0-cp311.whl, 900.1 MB"),
        ("  Downloading tiny-1.whl (1.1 MB)\n", None),
        ("Installing collected packages: a, b, c\n", "unpacking 3 packages"),
        ("WARNING: Location 'x' is ignored: it is neither a file nor a directory.\n", None),
    ],
)
def test_only_what_takes_time_is_told(launch, line, news):
    assert launch.milestone(line) == news


def test_a_missing_venv_module_says_what_to_install(launch, project, monkeypatch):
    answer = subprocess.CompletedProcess([], 1, stdout="ensurepip is not available.\n")
    monkeypatch.setattr(launch.subprocess, "run", lambda *_, **__: answer)

    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    with pytest.raises(launch.LaunchError, match=f"apt install python{version}-venv"):
        launch.Environment(project).ensure("base")


def test_an_environment_of_another_python_is_made_anew(launch, project, pip, monkeypatch):
    pip()
    python = project / ".venv/bin/python"
    python.write_text("#!/bin/sh\necho False\n")
    made = []

    def run(command, **options):
        if "venv" in command:
            made.append(command)
            pip()
            return subprocess.CompletedProcess(command, 0, stdout="")
        return original(command, **options)

    original = subprocess.run
    monkeypatch.setattr(launch.subprocess, "run", run)
    launch.Environment(project).ensure("base")

    assert [command[-2:] for command in made] == [["--clear", str(project / ".venv")]]
