"""What the panels say, and that nothing a person typed becomes HTML."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from webui.core.ports import EngineStatus
from webui.core.requests import Txt2Img, Upscale
from webui.extensions.views import ExtensionView
from webui.jobs.views import ImageView, JobState, JobView, Progress
from webui.ui.components.live_panel import duration, live_panel
from webui.ui.components.parameters import parameters_html, parameters_table
from webui.ui.components.status_line import status_line
from webui.ui.tabs.extensions import extension_card
from webui.ui.tabs.queue import queue_table, recent_images

NASTY = "<script>alert('x')</script>"
INFOTEXT = f"{NASTY}\nNegative prompt: {NASTY}\nSteps: 3, Sampler: Euler, Seed: 1, Size: 64x64"


def view(state: JobState, **changes) -> JobView:
    values = {
        "id": "a'b",
        "task": "txt2img",
        "request": Txt2Img(prompt=NASTY),
        "created_at": 0.0,
        "position": 0,
        "progress": None,
        "images": (),
        "error": None,
        "session": "",
    }
    return JobView(**{**values, "state": state, **changes})


def picture(path: Path = Path("a.png")) -> ImageView:
    return ImageView(index=0, path=path, seed=1, infotext=INFOTEXT)


def test_the_panel_says_what_a_running_job_does():
    progress = Progress(
        step=5, total_steps=20, image=1, total_images=4, eta_s=65, preview=b"\xff\xd8", preview_number=3
    )
    html = live_panel(view(JobState.RUNNING, progress=progress, images=(picture(),)), waiting=2)
    assert "data-state='running' data-images='1'" in html
    assert "Step 5 of 20 · picture 2 of 4 · 2 more waiting" in html
    assert "1 min 05 s left" in html
    assert "aria-valuenow='25'" in html
    assert "data:image/jpeg;base64,/9g=" in html


def test_an_upscale_counts_tiles():
    running = view(JobState.RUNNING, request=Upscale(image=b""), progress=Progress(step=1, total_steps=4))
    assert "Tile 1 of 4" in live_panel(running)


@pytest.mark.parametrize(("position", "words"), [(0, "Next in line"), (1, "One job is ahead"), (3, "3 jobs are ahead")])
def test_a_queued_job_knows_its_place(position, words):
    assert words in live_panel(view(JobState.QUEUED, position=position))


def test_the_end_is_told():
    assert "Done · 1 picture" in live_panel(view(JobState.FINISHED, images=(picture(),)))
    assert "Interrupted · no picture" in live_panel(view(JobState.CANCELLED))
    assert "data-state='empty'" in live_panel(None)


@pytest.mark.parametrize("state", [JobState.RUNNING, JobState.FINISHED, JobState.FAILED])
def test_what_a_job_has_to_say_is_shown(state):
    html = live_panel(view(state, notices=("The VAE <b> overflowed.",)))
    assert "<p class='live-notice' role='status'>The VAE &lt;b&gt; overflowed.</p>" in html


def test_nothing_typed_becomes_html():
    extension = ExtensionView(
        name=NASTY,
        enabled=True,
        loaded=False,
        path=Path("x"),
        description=NASTY,
        version=NASTY,
        hooks=(),
        source=NASTY,
        commit="",
        error=NASTY,
    )
    shown = [
        live_panel(view(JobState.FAILED, error=NASTY)),
        parameters_html(INFOTEXT),
        parameters_table(INFOTEXT),
        queue_table([view(JobState.QUEUED)]),
        status_line(EngineStatus(phase="ready", checkpoint=NASTY)),
        status_line(EngineStatus(phase="failed", detail=NASTY)),
        extension_card(extension),
    ]
    for html in shown:
        assert "script" in html
        assert "<script" not in html
    assert "data-cancel='a&#x27;b'" in queue_table([view(JobState.QUEUED)])


def test_parameters():
    assert "<dt>Sampler</dt><dd>Euler</dd>" in parameters_html(INFOTEXT)
    assert "<th scope='row'>Size</th><td>64x64</td>" in parameters_table(INFOTEXT)
    assert parameters_html(None) == ""
    assert "no parameters" in parameters_table(None)


def test_the_status_line():
    assert "warming up…" in status_line(EngineStatus(phase="warming up"))
    ready = EngineStatus(phase="ready", device="cpu", attention="sdpa", checkpoint="drawn")
    assert "cpu · sdpa · drawn" in status_line(ready)
    streamed = replace(ready, memory="unet streamed layer by layer")
    assert "drawn · unet streamed layer by layer<" in status_line(streamed)


def test_recent_pictures_leave_out_files_that_are_gone(tmp_path):
    there = tmp_path / "there.png"
    there.touch()
    job = view(JobState.FINISHED, images=(picture(there), picture(tmp_path / "gone.png")))
    assert [image.path for image in recent_images([job])] == [there]


@pytest.mark.parametrize(("seconds", "words"), [(-1, "0 s"), (59.4, "59 s"), (61, "1 min 01 s"), (4200, "1 h 10 min")])
def test_durations(seconds, words):
    assert duration(seconds) == words
