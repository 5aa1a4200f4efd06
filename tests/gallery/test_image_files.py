"""Saved pictures: whole, numbered, never overwritten; with threads, processes, crashes and full disks."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

import pytest

from webui.core import durable
from webui.core.errors import DiskFull, UserError
from webui.gallery import ImageFiles, open_picture, read_infotext

ROOT = Path(__file__).resolve().parents[2]
DAY = date(2026, 2, 3)

SAVER = """
import sys
from pathlib import Path
from PIL import Image
from webui.gallery import ImageFiles
files = ImageFiles(Path(sys.argv[1]), "[number]-[seed]")
image = Image.effect_noise((256, 256), 80)
for index in range(int(sys.argv[2])):
    files.save(image, task="txt2img", seed=index, infotext="Steps: 1")
    print(index, flush=True)
"""


def make(outputs: Path, pattern="[number]-[seed]") -> ImageFiles:
    return ImageFiles(outputs, pattern, today=lambda: DAY)


def saver(outputs: Path, count: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SAVER, str(outputs), str(count)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_pictures_are_filed_by_task_and_day_and_numbered(tmp_path, picture):
    files = make(tmp_path / "deep" / "outputs")
    first = files.save(picture, task="txt2img", seed=7, infotext="Steps: 1")
    second = files.save(picture, task="txt2img", seed=7, infotext="")
    other = files.save(picture, task="upscale", seed=0, infotext="")
    folder = tmp_path / "deep" / "outputs" / "txt2img" / "2026-02-03"
    assert (first, second) == (folder / "00001-7.png", folder / "00002-7.png")
    assert other.relative_to(files.outputs).as_posix() == "upscale/2026-02-03/00001-0.png"
    assert open_picture(first).tobytes() == picture.tobytes()
    assert (read_infotext(first), read_infotext(second)) == ("Steps: 1", None)
    assert names(folder) == ["00001-7.png", "00002-7.png"]


def test_numbers_go_on_after_the_highest(tmp_path, picture):
    files = make(tmp_path)
    folder = files.save(picture, task="txt2img", seed=1, infotext="").parent
    (folder / "00041-9.png").write_bytes(b"")
    (folder / "90000 holiday.png").write_bytes(b"")
    assert files.save(picture, task="txt2img", seed=1, infotext="").name == "00042-1.png"


def test_the_pattern_is_asked_for_each_picture(tmp_path, picture):
    patterns = iter(["[number]", "[seed] [number]", "no number"])
    files = make(tmp_path, lambda: next(patterns))
    saved = [files.save(picture, task="txt2img", seed=5, infotext="").name for _ in range(2)]
    assert saved == ["00001.png", "5 00001.png"]
    with pytest.raises(UserError, match="'no number'"):
        files.save(picture, task="txt2img", seed=5, infotext="")


def test_a_file_in_the_way_is_never_overwritten(tmp_path, picture):
    folder = tmp_path / "txt2img" / DAY.isoformat()
    folder.mkdir(parents=True)
    files = make(tmp_path, "[number]")
    real_link = os.link

    def somebody_was_quicker(source, target, **options):
        if target.name == "00001.png":
            target.write_bytes(b"mine")
        real_link(source, target, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "link", somebody_was_quicker)
        saved = files.save(picture, task="txt2img", seed=1, infotext="")
    assert saved.name == "00002.png"
    assert (folder / "00001.png").read_bytes() == b"mine"


@pytest.mark.parametrize("task", ["", "..", "a/b", "/etc", "Txt2Img", "a\0"])
def test_tasks_name_plain_folders(tmp_path, picture, task):
    with pytest.raises(ValueError, match="cannot name a folder"):
        make(tmp_path).save(picture, task=task, seed=1, infotext="")
    assert names(tmp_path) == []


def test_threads_share_the_numbers(tmp_path, picture):
    files = make(tmp_path)
    start = threading.Barrier(8)

    def save(seed: int) -> Path:
        start.wait()
        return files.save(picture, task="txt2img", seed=seed, infotext=f"Seed: {seed}")

    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(save, range(32)))
    assert sorted(int(path.stem.split("-")[0]) for path in paths) == list(range(1, 33))
    assert [read_infotext(path) for path in paths] == [f"Seed: {seed}" for seed in range(32)]


def test_processes_share_the_numbers(tmp_path):
    processes = [saver(tmp_path, 6) for _ in range(3)]
    for process in processes:
        process.communicate(timeout=60)
        assert process.returncode == 0
    numbers = sorted(int(path.stem.split("-")[0]) for path in tmp_path.rglob("*.png"))
    assert numbers == list(range(1, 19))


def test_a_killed_server_leaves_whole_pictures_and_sweeping_takes_the_rest(tmp_path):
    source = random.Random(3)
    for _ in range(5):
        process = saver(tmp_path, 100_000)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(source.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    saved = sorted(tmp_path.rglob("*.png"))
    assert len(saved) >= 5
    for path in saved:
        assert open_picture(path).size == (256, 256)
    files = ImageFiles(tmp_path)
    files.sweep()
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == saved


def test_sweeping_leaves_a_picture_in_the_making(tmp_path, picture):
    files = make(tmp_path)
    folder = files.save(picture, task="txt2img", seed=1, infotext="").parent
    (folder / ".00002.part").write_bytes(b"half")
    with durable.new_temporary(durable.temporary_path(folder, "00003")):
        assert files.sweep() == 1
        assert files.save(picture, task="txt2img", seed=1, infotext="").name == "00002-1.png"
        assert files.save(picture, task="txt2img", seed=1, infotext="").name == "00004-1.png"
    assert names(folder) == ["00001-1.png", "00002-1.png", "00004-1.png"]


def test_a_leftover_that_was_not_swept_only_costs_its_number(tmp_path, picture):
    files = make(tmp_path)
    folder = files.save(picture, task="txt2img", seed=1, infotext="").parent
    (folder / ".00002.part").write_bytes(b"half")
    assert files.save(picture, task="txt2img", seed=1, infotext="").name == "00003-1.png"


@pytest.mark.parametrize("call", ["write", "fsync", "link"])
def test_a_full_disk_is_said_and_leaves_nothing(tmp_path, picture, monkeypatch, call):
    files = make(tmp_path)
    folder = files.save(picture, task="txt2img", seed=1, infotext="").parent

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(DiskFull) as raised:
        files.save(picture, task="txt2img", seed=2, infotext="")
    monkeypatch.undo()
    assert str(raised.value) == (
        f"Pictures cannot be saved in {folder}: No space left on device. "
        "Free space, or allow writing there, and try again."
    )
    assert names(folder) == ["00001-1.png"]
    assert files.save(picture, task="txt2img", seed=2, infotext="").name == "00002-2.png"


def test_a_file_in_the_place_of_the_folder_is_said(tmp_path, picture):
    (tmp_path / "outputs").write_bytes(b"")
    files = make(tmp_path / "outputs")
    for attempt in (files.check_writable, lambda: files.save(picture, task="txt2img", seed=1, infotext="")):
        with pytest.raises(DiskFull, match="outputs"):
            attempt()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_said(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(DiskFull, match="Permission denied"):
        make(tmp_path / "outputs").check_writable()


def test_checking_makes_the_folder_and_leaves_nothing(tmp_path):
    files = make(tmp_path / "outputs")
    files.check_writable()
    assert names(tmp_path / "outputs") == []


def test_a_nearly_full_disk_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 3 * 2**20}))
    with pytest.raises(DiskFull, match="has only 3 MB of disk left"):
        make(tmp_path).check_writable()


def test_sweeping_before_the_first_picture_finds_nothing(tmp_path):
    assert make(tmp_path / "nowhere").sweep() == 0
