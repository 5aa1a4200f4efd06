"""The queue as its callers see it."""

from __future__ import annotations

import dataclasses
import threading

import pytest
from PIL import Image
from sqlalchemy import event

from webui.core.errors import CheckpointNotFound, InvalidRequest, UpscalerNotFound, VaeNotFound
from webui.core.requests import Img2Img, Txt2Img, Upscale
from webui.gallery.pictures import read_infotext
from webui.jobs.views import JobState
from webui.settings.schema import Settings

REQUEST = Txt2Img(prompt="a circle", checkpoint="first", steps=3, seed=5, width=64, height=64)
PATIENCE_S = 20


def test_a_job_runs_and_its_pictures_are_stored(jobs, wait_for_end, files):
    request = dataclasses.replace(REQUEST, batch_size=2, batch_count=2)
    with jobs:
        view = wait_for_end(jobs, jobs.submit(request, session="me"))
    assert (view.state, view.error, view.progress, view.task, view.session) == ("finished", None, None, "txt2img", "me")
    assert view.request == request
    assert [(image.index, image.seed) for image in view.images] == [(0, 5), (1, 6), (2, 7), (3, 8)]
    for image in view.images:
        assert image.path.is_relative_to(files.outputs / "txt2img")
        assert read_infotext(image.path) == image.infotext == f"seed {image.seed}"


def test_what_a_job_had_to_say_is_kept_once(jobs, engine, wait_for_end):
    engine.notices["a circle"] = ["The VAE overflowed.", "Decoded again."]
    with jobs:
        view = wait_for_end(jobs, jobs.submit(dataclasses.replace(REQUEST, batch_count=2)))
    assert view.notices == ("The VAE overflowed.", "Decoded again.")
    assert jobs.recent(1)[0].notices == view.notices


def test_submit_settles_seed_and_checkpoint(make_jobs):
    jobs = make_jobs()
    stored = jobs.view(jobs.submit(dataclasses.replace(REQUEST, seed=-1, checkpoint=""))).request
    assert stored.seed >= 0
    assert stored.checkpoint == "first"
    chosen = make_jobs(settings=lambda: Settings(checkpoint="second"))
    assert chosen.view(chosen.submit(dataclasses.replace(REQUEST, checkpoint=""))).request.checkpoint == "second"


@pytest.mark.parametrize(
    ("request_", "kind", "sentence"),
    [
        (dataclasses.replace(REQUEST, width=65), InvalidRequest, "65"),
        (dataclasses.replace(REQUEST, checkpoint="none"), CheckpointNotFound, "none"),
        (dataclasses.replace(REQUEST, vae="hard.pt"), VaeNotFound, "hard.pt.*Automatic, None, soft.safetensors"),
        (Upscale(image=b"png", upscaler="Mirror"), UpscalerNotFound, "Mirror.*Lanczos, Nearest"),
    ],
)
def test_bad_requests_are_refused_and_not_stored(jobs, request_, kind, sentence):
    with pytest.raises(kind, match=sentence):
        jobs.submit(request_)
    assert jobs.queue() == []


def test_an_unknown_job(jobs):
    assert jobs.view("nobody") is None
    assert list(jobs.watch("nobody")) == []
    jobs.cancel("nobody")
    jobs.skip("nobody")


def test_the_queue_shows_the_running_job_first_and_places(jobs, engine, wait_for_end):
    engine.hold(1)
    with jobs:
        ids = [jobs.submit(REQUEST) for _ in range(3)]
        engine.wait_until_held()
        queue = jobs.queue()
        assert [view.id for view in queue] == ids
        assert [view.state for view in queue] == ["running", "queued", "queued"]
        assert [view.position for view in queue] == [0, 1, 2] == [jobs.view(job_id).position for job_id in ids]
        assert queue[0].progress.total_steps == 3
        engine.let_go()
        for job_id in ids:
            wait_for_end(jobs, job_id)
        assert jobs.queue() == []
        assert [view.id for view in jobs.recent(2)] == [ids[2], ids[1]]
        assert len(jobs.recent(2)[0].images) == 1


def test_listings_do_not_read_the_pictures_of_requests(jobs, database):
    request = Img2Img(init_image=b"\x89PNG" * 1000, checkpoint="first", seed=1)
    job_id = jobs.submit(request)
    asked = []
    event.listen(database, "before_cursor_execute", lambda *args: asked.append(args[2]))
    assert [view.request for view in jobs.queue()] == [dataclasses.replace(request, init_image=b"")]
    jobs.cancel(job_id)
    assert [view.request.init_image for view in jobs.recent(5)] == [b""]
    assert asked
    assert not [statement for statement in asked if "request_pictures" in statement]
    assert jobs.view(job_id).request == request


def test_cancelling_a_queued_job(jobs, wait_for_end, engine):
    first, second = jobs.submit(REQUEST), jobs.submit(REQUEST)
    jobs.cancel(first)
    with jobs:
        assert wait_for_end(jobs, second).state is JobState.FINISHED
    assert wait_for_end(jobs, first).state is JobState.CANCELLED
    assert len(engine.calls) == 1


def test_cancelling_the_running_job_stops_within_a_step_and_keeps_its_pictures(jobs, wait_for_end, engine, hooks):
    request = dataclasses.replace(REQUEST, batch_count=3)
    engine.hold(5)  # the second step of the second batch
    with jobs:
        job_id = jobs.submit(request)
        engine.wait_until_held()
        jobs.cancel(job_id)
        engine.let_go()
        view = wait_for_end(jobs, job_id)
        assert view.state is JobState.CANCELLED
        assert [image.index for image in view.images] == [0]
        assert engine.closed == [5]
        jobs.cancel(job_id)
        assert jobs.view(job_id) == view
        assert wait_for_end(jobs, jobs.submit(REQUEST)).state is JobState.FINISHED
    assert ("after", "cancelled") in hooks.told


def test_skip_leaves_one_batch(jobs, wait_for_end, engine):
    engine.hold(5)
    with jobs:
        job_id = jobs.submit(dataclasses.replace(REQUEST, batch_count=3))
        engine.wait_until_held()
        jobs.skip(job_id)
        engine.let_go()
        view = wait_for_end(jobs, job_id)
    assert view.state is JobState.FINISHED
    assert [image.index for image in view.images] == [0, 2]


def test_many_watchers_each_see_the_run_and_end(jobs, engine):
    seen: list[list] = [[] for _ in range(8)]
    job_id = jobs.submit(dataclasses.replace(REQUEST, batch_count=2))
    engine.hold(2)
    started = threading.Barrier(len(seen) + 1)

    def watch(views: list) -> None:
        for view in jobs.watch(job_id, interval_s=0):
            views.append(view)
            if len(views) == 1:
                started.wait(PATIENCE_S)

    watchers = [threading.Thread(target=watch, args=(views,), daemon=True) for views in seen]
    for watcher in watchers:
        watcher.start()
    started.wait(PATIENCE_S)
    with jobs:
        engine.wait_until_held()
        engine.let_go()
        for watcher in watchers:
            watcher.join(PATIENCE_S)
            assert not watcher.is_alive()
    for views in seen:
        states = [view.state for view in views]
        assert states[0] == "queued"
        assert states[-1] == "finished"
        assert JobState.RUNNING in states  # the engine was held while it ran
        assert len(views[-1].images) == 2
        steps = [view.progress.step for view in views if view.progress is not None]
        assert steps == sorted(steps)
        assert [image.index for image in views[-1].images] == [0, 1]


def test_watching_a_finished_job_gives_its_end_at_once(jobs, wait_for_end):
    with jobs:
        job_id = jobs.submit(REQUEST)
        wait_for_end(jobs, job_id)
        (view,) = jobs.watch(job_id)
    assert view.state is JobState.FINISHED
    assert view == jobs.view(job_id)


def test_watchers_end_when_the_server_stops_and_the_job_waits_for_the_next(make_jobs, engine, wait_for_end):
    request = dataclasses.replace(REQUEST, batch_count=3)
    engine.hold(5)
    first = make_jobs()
    with first:
        job_id = first.submit(request)
        watching = first.watch(job_id, interval_s=0)
        assert next(watching).id == job_id
        engine.wait_until_held()
        closing = threading.Thread(target=first.close)
        closing.start()
        while not first._worker._closing.is_set():
            closing.join(0.001)
        engine.let_go()
        closing.join(PATIENCE_S)
    assert list(watching)[-1].state is JobState.QUEUED
    with make_jobs() as second:
        view = wait_for_end(second, job_id)
    assert view.state is JobState.FINISHED
    assert [image.index for image in view.images] == [0, 1, 2]
    assert [start for _, start in engine.calls] == [0, 1]


def test_previews_reach_the_watchers_and_are_forgotten(jobs, engine):
    engine.hold(3)
    with jobs:
        job_id = jobs.submit(REQUEST)
        previews = []
        for view in jobs.watch(job_id, interval_s=0):
            if view.progress is not None and view.progress.preview is not None:
                previews.append((view.progress.preview_number, view.progress.preview))
                engine.let_go()
        assert previews
        assert previews == sorted(previews)
        assert jobs._live.get(job_id) is None


def test_previews_can_be_switched_off(make_jobs, wait_for_end):
    jobs = make_jobs(settings=lambda: Settings(previews=False))
    offered = []
    jobs._worker._tools.previews.offer = lambda *args, **kwargs: offered.append(args)
    with jobs:
        wait_for_end(jobs, jobs.submit(REQUEST))
    assert offered == []


def test_a_moved_outputs_folder_keeps_its_pictures(make_jobs, wait_for_end, files, tmp_path):
    with make_jobs() as jobs:
        job_id = jobs.submit(REQUEST)
        wait_for_end(jobs, job_id)
    moved = files.outputs.rename(tmp_path / "elsewhere")
    files.outputs = moved
    with Image.open(make_jobs().view(job_id).images[0].path) as image:
        assert image.size == (8, 8)


def test_a_file_name_that_was_freed_by_hand_can_be_used_again(jobs, wait_for_end):
    with jobs:
        first = jobs.submit(REQUEST)
        path = wait_for_end(jobs, first).images[0].path
        path.unlink()
        second = wait_for_end(jobs, jobs.submit(REQUEST))
        assert second.images[0].path == path
        assert jobs.view(first).images == ()
