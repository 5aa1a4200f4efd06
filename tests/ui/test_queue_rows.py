"""The queue's table shows what waits of a folder as one row."""

from __future__ import annotations

from pathlib import Path

from webui.core.requests import Txt2Img, Upscale
from webui.jobs.views import FolderFile, JobState, JobView
from webui.ui.tabs.queue import queue_table


def job(name: str, state: JobState = JobState.QUEUED, folder: str = "") -> JobView:
    request = Upscale(image=b"", upscaler="Lanczos", scale=2) if folder else Txt2Img(prompt=name)
    file = FolderFile(source=Path("/in") / name, target=Path(folder) / name) if folder else None
    return JobView(
        id=name,
        task="upscale" if folder else "txt2img",
        state=state,
        request=request,
        created_at=0,
        position=0,
        progress=None,
        images=(),
        error=None,
        session="",
        file=file,
        batch=folder,
    )


def test_a_folder_s_waiting_files_are_one_row():
    running = job("a.png", JobState.RUNNING, folder="/out")
    waiting = [job(f"{letter}.png", folder="/out") for letter in "bcd"]
    other = [job("x.png", folder="/elsewhere")]
    table = queue_table([running, job("a star"), *waiting, *other])
    assert table.count("<tr data-job") == 4
    assert ">a.png: Lanczos, ×2<" in table
    assert ">a star<" in table
    assert ">b.png and 2 more of its folder: Lanczos, ×2<" in table
    assert ">x.png: Lanczos, ×2<" in table
    assert "data-job='c.png'" not in table
    assert [table.count(f">{words}<") for words in ("Interrupt", "Remove", "Stop folder")] == [1, 1, 2]
