"""`kill -9` at any moment damages no picture and loses no job: a real server process is killed, again and again."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from webui.database.opening import open_database
from webui.gallery.pictures import read_infotext
from webui.jobs.store import JobStore
from webui.jobs.views import JobState

SERVER = Path(__file__).with_name("server_process.py")
ROOT = Path(__file__).parents[2]
PICTURES = 8  # a job, as server_process submits them: 4 batches of 2


def start(folder: Path, count: int, **options: object) -> subprocess.Popen[str]:
    arguments = [str(folder), str(count), *(f"{name}={value}" for name, value in options.items())]
    return subprocess.Popen(
        [sys.executable, str(SERVER), *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def read_until(server: subprocess.Popen[str], word: str | None) -> list[str]:
    """The server's lines up to `word`, or to its end."""
    lines = []
    for line in server.stdout:
        lines.append(line.strip())
        if line.strip() == word:
            return lines
    assert word is None, f"the server ended before it said {word!r}: {lines}"
    return lines


def kill(server: subprocess.Popen[str]) -> list[str]:
    server.send_signal(signal.SIGKILL)
    rest = read_until(server, None)
    assert server.wait() == -signal.SIGKILL
    server.stdout.close()
    return rest


def kill_itself(server: subprocess.Popen[str]) -> list[str]:
    """Waits for a server that was told to kill itself."""
    lines = read_until(server, None)
    assert server.wait() == -signal.SIGKILL
    server.stdout.close()
    return lines


def finish(folder: Path, count: int = 0) -> list[str]:
    """Runs a server until its queue is empty."""
    server = start(folder, count)
    lines = read_until(server, None)
    assert server.wait() == 0
    server.stdout.close()
    assert lines[-1] == "done"
    return lines


@pytest.fixture
def read_jobs(tmp_path):
    database = open_database(tmp_path / "data" / "atelier.sqlite")

    def read():
        store = JobStore(database, tmp_path / "outputs")
        assert store.unfinished() == []
        return {view.id: view for view in store.newest(1000)}

    yield read
    database.dispose()


def submitted(lines: list[str]) -> list[str]:
    return [line.split()[1] for line in lines if line.startswith("submitted")]


def check_pictures(folder: Path, views) -> None:
    """Every listed picture is whole and says what its row says, and nothing else lies in the folder."""
    listed = [image for view in views for image in view.images]
    for image in listed:
        with Image.open(image.path) as picture:
            picture.load()
            assert picture.size == (128, 128)
        assert read_infotext(image.path) == image.infotext
    on_disk = [path for path in (folder / "outputs").rglob("*") if path.is_file()]
    assert sorted(on_disk) == sorted(image.path for image in listed)


@pytest.mark.timeout(240)
def test_ten_kills_at_random_moments_lose_nothing(tmp_path, read_jobs):
    moments = random.Random(20261121)
    said: list[str] = []
    for number in range(10):
        server = start(tmp_path, count=4 if number == 0 else 1)
        # Every third server is killed while it starts; the others make a picture first, or the rule against jobs that
        # crash the server three times in a row would rightly end one.
        said += read_until(server, "started" if number % 3 == 2 else "stored")
        time.sleep(moments.uniform(0, 0.2))
        said += kill(server)
    said += kill_itself(start(tmp_path, count=1, die_after_saves=3))  # and once exactly between a file and its row
    finish(tmp_path)

    views = read_jobs()
    assert len(submitted(said)) >= 10
    assert set(submitted(said)) <= set(views)
    for view in views.values():
        assert (view.state, view.error) == (JobState.FINISHED, None)
        assert [image.index for image in view.images] == list(range(PICTURES))
        assert [image.seed for image in view.images] == [view.request.seed + place for place in range(PICTURES)]
    check_pictures(tmp_path, views.values())


def test_a_job_that_kills_the_server_is_given_up_after_three_times(tmp_path, read_jobs):
    said = kill_itself(start(tmp_path, count=1, prompt="poison"))
    for _ in range(2):
        said += kill_itself(start(tmp_path, count=0))
    good = submitted(finish(tmp_path, count=1))
    views = read_jobs()
    (poison,) = submitted(said)
    assert views[poison].state is JobState.FAILED
    assert "3 times in a row" in views[poison].error
    assert views[good[0]].state is JobState.FINISHED
    assert poison != good[0]
    check_pictures(tmp_path, views.values())
