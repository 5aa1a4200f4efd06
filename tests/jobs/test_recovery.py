"""What a dead server leaves, and what the next one makes of it. The kill itself is in tests/faults."""

from __future__ import annotations

import dataclasses
import logging

import pytest
from PIL import Image

from webui.core.errors import UserError
from webui.core.requests import Img2Img, Loopback, Txt2Img, Upscale
from webui.jobs.recovery import MOST_CRASHES
from webui.jobs.runner import first_batch
from webui.jobs.store import JobStore
from webui.jobs.views import JobState

REQUEST = Txt2Img(prompt="a circle", checkpoint="first", steps=2, seed=5, width=64, height=64, batch_count=3)
PICTURE = Image.new("RGB", (8, 8))


@pytest.fixture
def store(database, files):
    return JobStore(database, files.outputs)


@pytest.mark.parametrize(
    ("size", "stored", "start"),
    [(1, [], 0), (1, [0, 1], 2), (2, [0, 1], 1), (2, [0, 1, 2], 1), (2, [4, 5], 3), (3, [1, 2], 0)],
)
def test_first_batch(size, stored, start):
    assert first_batch(dataclasses.replace(REQUEST, batch_size=size), frozenset(stored)) == start


def test_an_upscale_has_one_batch():
    assert first_batch(Upscale(image=b"png"), frozenset([0])) == 1


def test_a_batch_of_loopback_is_whole_with_all_its_loops():
    request = Img2Img(init_image=b"png", batch_count=3, loopback=Loopback(loops=4))
    assert request.total_images == 12
    assert [first_batch(request, frozenset(range(stored))) for stored in (0, 3, 4, 7, 8)] == [0, 0, 1, 1, 2]


def test_a_crashed_job_goes_on_before_the_others_after_what_is_stored(store, files, make_jobs, engine, wait_for_end):
    crashed, waiting = store.add(REQUEST, ""), store.add(REQUEST, "")
    assert store.claim_next() == crashed
    reservation = store.reserve_image(crashed, index=0, seed=5, infotext="seed 5")
    store.list_image(reservation, files.save(PICTURE, task="txt2img", seed=5, infotext="seed 5"))
    jobs = make_jobs()
    assert [view.id for view in jobs.queue()] == [crashed, waiting]
    with jobs:
        assert wait_for_end(jobs, waiting).state is JobState.FINISHED
        view = jobs.view(crashed)
    assert (view.state, [image.index for image in view.images]) == (JobState.FINISHED, [0, 1, 2])
    assert [start for _, start in engine.calls] == [1, 0]


def test_a_file_written_just_before_the_crash_is_adopted(store, files, make_jobs, engine, wait_for_end):
    job_id = store.add(REQUEST, "")
    store.claim_next()
    older = files.save(PICTURE, task="txt2img", seed=5, infotext="seed 5")
    store.list_image(store.reserve_image(job_id, index=0, seed=5, infotext="seed 5"), older)
    store.reserve_image(job_id, index=1, seed=6, infotext="seed 6")
    files.save(PICTURE, task="txt2img", seed=9, infotext="someone else's")
    written = files.save(PICTURE, task="txt2img", seed=6, infotext="seed 6")
    (written.parent / "notes.txt").write_text("no picture")
    (written.parent / ".00009.part").write_bytes(written.read_bytes())
    with make_jobs() as jobs:
        view = wait_for_end(jobs, job_id)
    assert [image.path for image in view.images][:2] == [older, written]
    assert [start for _, start in engine.calls] == [2]
    assert not (written.parent / ".00009.part").exists()


def test_a_reservation_without_a_file_is_made_again(store, make_jobs, engine, wait_for_end):
    job_id = store.add(REQUEST, "")
    store.claim_next()
    store.reserve_image(job_id, index=0, seed=5, infotext="seed 5")
    assert store.view(job_id).images == ()
    with make_jobs() as jobs:
        view = wait_for_end(jobs, job_id)
    assert [image.index for image in view.images] == [0, 1, 2]
    assert [start for _, start in engine.calls] == [0]


def test_a_batch_stored_in_part_is_made_again_and_listed_once(store, files, make_jobs, wait_for_end):
    job_id = store.add(dataclasses.replace(REQUEST, batch_size=2, batch_count=1), "")
    store.claim_next()
    kept = files.save(PICTURE, task="txt2img", seed=5, infotext="seed 5")
    store.list_image(store.reserve_image(job_id, index=0, seed=5, infotext="seed 5"), kept)
    with make_jobs() as jobs:
        view = wait_for_end(jobs, job_id)
    assert [image.index for image in view.images] == [0, 1]
    assert view.images[0].path == kept
    assert len(list(files.outputs.rglob("*.png"))) == 2


def test_a_job_that_lacked_only_its_end_is_finished(store, files, make_jobs, engine, wait_for_end):
    job_id = store.add(dataclasses.replace(REQUEST, batch_count=1), "")
    store.claim_next()
    path = files.save(PICTURE, task="txt2img", seed=5, infotext="seed 5")
    store.list_image(store.reserve_image(job_id, index=0, seed=5, infotext="seed 5"), path)
    with make_jobs() as jobs:
        assert wait_for_end(jobs, job_id).state is JobState.FINISHED
    assert engine.calls == []


def crash(store: JobStore, job_id: str) -> None:
    assert store.claim_next() == job_id
    store.requeue_crashed(most_crashes=MOST_CRASHES, error="poison")


def test_a_job_that_crashes_the_server_three_times_is_not_tried_again(store, make_jobs, engine, wait_for_end, caplog):
    poison, good = store.add(REQUEST, ""), store.add(REQUEST, "")
    for _ in range(2):
        crash(store, poison)
    assert store.view(poison).state is JobState.QUEUED
    assert store.claim_next() == poison
    with make_jobs() as jobs, caplog.at_level(logging.WARNING):
        assert wait_for_end(jobs, good).state is JobState.FINISHED
        view = jobs.view(poison)
    assert view.state is JobState.FAILED
    assert "3 times in a row" in view.error
    assert len(engine.calls) == 1


def test_a_new_picture_starts_the_count_of_crashes_anew(store, files):
    job_id = store.add(REQUEST, "")
    for place in range(3):
        for _ in range(2):
            crash(store, job_id)
        assert store.claim_next() == job_id
        path = files.save(PICTURE, task="txt2img", seed=place, infotext="")
        store.list_image(store.reserve_image(job_id, index=place, seed=place, infotext=""), path)
        store.requeue(job_id)
    assert store.view(job_id).state is JobState.QUEUED


def test_a_second_server_on_the_same_database_is_refused(make_jobs):
    first, second = make_jobs(), make_jobs()
    first.start()
    with pytest.raises(UserError, match="Another Atelier server"):
        second.start()
    first.close()
    with make_jobs():
        pass
