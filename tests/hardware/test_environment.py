import os
import subprocess
import sys

import pytest

from webui.hardware.environment import prepare_environment

NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "THP_MEM_ALLOC_ENABLE")


@pytest.fixture
def environment(monkeypatch):
    for name in NAMES:
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    return os.environ


def test_threads_sleep_and_pages_are_large(environment):
    prepare_environment()
    assert {name: environment.get(name) for name in NAMES} == {
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": None,
        "THP_MEM_ALLOC_ENABLE": "1",
    }


@pytest.mark.parametrize(("name", "value"), [("OMP_WAIT_POLICY", "ACTIVE"), ("THP_MEM_ALLOC_ENABLE", "0")])
def test_what_a_person_set_stands(environment, name, value):
    environment[name] = value
    prepare_environment()
    assert environment[name] == value


def test_a_number_of_turns_that_a_person_set_stands(environment):
    environment["GOMP_SPINCOUNT"] = "1000"
    prepare_environment()
    assert "OMP_WAIT_POLICY" not in environment


@pytest.mark.skipif(sys.platform != "linux", reason="another OpenMP tells itself in another way")
def test_it_comes_before_the_engine_loads_torch(environment, tmp_path):
    """OpenMP says itself what it found when it was loaded."""
    code = (
        "from webui.checkpoints.scan import CheckpointFolder; from webui.engine.manager import EngineManager\n"
        "from webui.settings.schema import Settings; from pathlib import Path\n"
        f"EngineManager(CheckpointFolder(Path({str(tmp_path)!r})), Settings).warm_up()"
    )
    told = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, "OMP_DISPLAY_ENV": "TRUE"},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in told.stderr
