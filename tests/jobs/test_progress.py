from __future__ import annotations

import gc
import threading
import time
import weakref

import pytest

from webui.jobs.progress import Eta, LiveProgress, Previews
from webui.jobs.views import Progress

PATIENCE_S = 20


def test_eta_counts_the_pace_since_the_first_step():
    eta = Eta()
    assert eta.after(11, 20, 100.0) is None  # loading took 100 seconds, ten steps were done before a crash
    assert eta.after(12, 20, 102.0) == pytest.approx(16)
    assert eta.after(15, 20, 108.0) == pytest.approx(10)
    assert eta.after(20, 20, 118.0) == 0


def test_progress_is_coalesced_and_rows_are_not():
    live = LiveProgress()
    live.begin("a", Progress())
    with live.subscribed("a") as changes:
        live.advance("a", step=1, total_steps=9, total_images=1, eta_s=None)
        first = changes.wait(interval_s=0, heartbeat_s=PATIENCE_S)
        assert (first.rows, first.progress.step) == (False, 1)
        live.advance("a", step=2, total_steps=9, total_images=1, eta_s=None)
        timer = threading.Timer(0.05, live.image_stored, ("a", 1))
        timer.start()
        second = changes.wait(interval_s=3600, heartbeat_s=PATIENCE_S)  # the picture ends the interval
        assert (second.rows, second.progress.step, second.progress.image) == (True, 2, 1)
        timer.join()


def test_a_heartbeat_comes_when_nothing_changes():
    live = LiveProgress()
    with live.subscribed("a") as changes:
        change = changes.wait(interval_s=0, heartbeat_s=0.01)
    assert change.rows
    assert not change.closed


def test_a_change_of_another_jobs_progress_wakes_nobody():
    live = LiveProgress()
    live.begin("a", Progress())
    live.begin("b", Progress())
    with live.subscribed("a") as changes:
        live.preview("b", b"jpeg")
        assert not changes._anything()
        live.end("b")  # but it moves others up in the queue
        assert changes._anything()


def test_an_ended_job_is_forgotten_and_late_previews_are_dropped():
    live = LiveProgress()
    live.begin("a", Progress())
    live.preview("a", b"jpeg")
    assert live.get("a").preview_number == 1
    live.end("a")
    live.preview("a", b"late")
    assert live.get("a") is None


def test_watchers_are_forgotten_when_they_leave():
    live = LiveProgress()
    with live.subscribed("a"):
        assert len(live._watchers) == 1
    assert live._watchers == set()


@pytest.fixture
def previews():
    made = []
    jpegs: list[bytes] = []
    arrived = threading.Condition()

    def publish(job_id: str, jpeg: bytes) -> None:
        with arrived:
            jpegs.append(jpeg)
            arrived.notify_all()

    def wait_for(count: int) -> list[bytes]:
        with arrived:
            assert arrived.wait_for(lambda: len(jpegs) >= count, PATIENCE_S)
            return list(jpegs)

    made = Previews(publish)
    made.start()
    yield made, wait_for
    made.stop(PATIENCE_S)


def test_the_newest_step_is_shown_and_those_missed_are_not(previews):
    made, wait_for = previews
    rendering, go = threading.Event(), threading.Event()

    def slow() -> bytes:
        rendering.set()
        go.wait(PATIENCE_S)
        return b"1"

    made.offer("a", slow, per_second=1000)
    assert rendering.wait(PATIENCE_S)
    for step in (b"2", b"3", b"4"):
        made.offer("a", lambda step=step: step, per_second=1000)  # returns at once, though the thread is busy
    go.set()
    assert wait_for(2) == [b"1", b"4"]


def test_no_more_previews_than_asked_for(previews):
    made, wait_for = previews
    made.offer("a", lambda: b"1", per_second=20)
    wait_for(1)
    begin = time.monotonic()
    for step in (b"2", b"3"):
        made.offer("a", lambda step=step: step, per_second=20)
    assert wait_for(2) == [b"1", b"3"]
    assert time.monotonic() - begin >= 0.04  # the rate's own promise; slower machines only take longer


def test_a_preview_that_fails_is_logged_and_the_next_one_comes(previews, caplog):
    made, wait_for = previews
    failed = threading.Event()

    def fail() -> bytes:
        failed.set()
        raise RuntimeError("no decoder")

    made.offer("a", fail, per_second=1000)
    assert failed.wait(PATIENCE_S)
    made.offer("a", lambda: b"2", per_second=1000)
    assert wait_for(1) == [b"2"]
    assert "no decoder" in caplog.text


def test_rendered_and_cleared_steps_are_let_go(previews):
    made, wait_for = previews

    class Render:
        def __call__(self) -> bytes:
            return b"jpeg"

    first, second = Render(), Render()
    alive = [weakref.ref(first), weakref.ref(second)]
    made.offer("a", first, per_second=0.001)
    wait_for(1)
    made.offer("a", second, per_second=0.001)
    made.clear()
    del first, second
    made.stop(PATIENCE_S)
    gc.collect()
    assert [reference() for reference in alive] == [None, None]
