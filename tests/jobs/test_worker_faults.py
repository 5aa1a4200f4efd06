"""What goes wrong in a job stays in the job."""

from __future__ import annotations

import dataclasses
import sqlite3
import threading

import pytest
from PIL import Image
from sqlalchemy.exc import OperationalError

from webui.core.errors import DiskFull, OutOfMemory, ResourceError, UserError
from webui.core.requests import Txt2Img
from webui.database.opening import writing
from webui.jobs.views import JobState

REQUEST = Txt2Img(prompt="a circle", checkpoint="first", steps=2, seed=5, width=64, height=64)


@pytest.mark.parametrize(
    ("failure", "sentence"),
    [
        (OutOfMemory("The picture needs 9 GB; there are 2."), "The picture needs 9 GB; there are 2."),
        (ValueError("boom"), "The job failed unexpectedly (ValueError: boom); the log has the details."),
    ],
)
def test_a_failure_in_the_engine_fails_its_job_only(jobs, engine, wait_for_end, hooks, failure, sentence):
    engine.fails["bad"] = failure
    with jobs:
        bad = jobs.submit(dataclasses.replace(REQUEST, prompt="bad", batch_count=2))
        good = jobs.submit(REQUEST)
        view = wait_for_end(jobs, bad)
        assert (view.state, view.error) == (JobState.FAILED, sentence)
        assert [image.index for image in view.images] == [0]
        assert wait_for_end(jobs, good).state is JobState.FINISHED
    assert [told for told in hooks.told if told[0] == "after"] == [("after", "failed"), ("after", "finished")]


def test_a_full_disk_fails_the_job_with_its_sentence(jobs, files, wait_for_end):
    save = files.save

    def save_once_full(*args, **kwargs):
        files.save = save
        raise DiskFull("The folder outputs is full.")

    files.save = save_once_full
    with jobs:
        first, second = jobs.submit(REQUEST), jobs.submit(REQUEST)
        view = wait_for_end(jobs, first)
        assert (view.state, view.error, view.images) == (JobState.FAILED, "The folder outputs is full.", ())
        assert wait_for_end(jobs, second).state is JobState.FINISHED


@pytest.mark.parametrize("failure", [UserError("There are no models."), RuntimeError("no torch")])
def test_a_failed_warm_up_leaves_the_worker_at_work(jobs, engine, wait_for_end, failure):
    engine.fails_to_warm_up = engine.fails["a circle"] = failure
    with jobs:
        view = wait_for_end(jobs, jobs.submit(REQUEST))
        assert view.state is JobState.FAILED
        assert str(failure) in view.error
        assert wait_for_end(jobs, jobs.submit(dataclasses.replace(REQUEST, prompt="other"))).state == "finished"


def test_a_locked_database_is_waited_for(jobs, engine, database, wait_for_end, caplog):
    engine.hold(2)
    with jobs:
        job_id = jobs.submit(REQUEST)
        engine.wait_until_held()
        tried = threading.Event()
        caplog.handler.addFilter(lambda record: bool(tried.set() or True) if "trying again" in record.msg else True)
        with writing(database):
            engine.let_go()
            assert tried.wait(20)
        assert wait_for_end(jobs, job_id).state is JobState.FINISHED
        assert len(jobs.view(job_id).images) == 1


@pytest.mark.parametrize(
    "failure", [OperationalError("BEGIN", {}, sqlite3.OperationalError("database is locked")), RuntimeError("a bug")]
)
def test_a_failure_between_jobs_does_not_end_the_worker(jobs, wait_for_end, failure):
    claim_next = jobs._store.claim_next

    def fail_once():
        jobs._store.claim_next = claim_next
        raise failure

    jobs._store.claim_next = fail_once
    with jobs:
        assert wait_for_end(jobs, jobs.submit(REQUEST)).state is JobState.FINISHED
    assert jobs._store.claim_next == claim_next


def test_hooks_change_the_request_and_the_picture(jobs, engine, hooks, wait_for_end):
    hooks.before_job = lambda request: dataclasses.replace(request, steps=4)
    hooks.process_image = lambda image, request: Image.new("RGB", (9, request.steps))
    with jobs:
        view = wait_for_end(jobs, jobs.submit(REQUEST))
    assert engine.calls[0][0].steps == 4
    assert view.request == REQUEST  # what was asked for stays as it was
    with Image.open(view.images[0].path) as image:
        assert image.size == (9, 4)
    assert [told for told in hooks.told if told[0] == "step"] == [("step", str(step)) for step in (1, 2, 3, 4)]


def test_a_hook_cannot_bring_in_a_request_out_of_range(jobs, hooks, wait_for_end):
    hooks.before_job = lambda request: dataclasses.replace(request, steps=100_000)
    with jobs:
        view = wait_for_end(jobs, jobs.submit(REQUEST))
    assert view.state is JobState.FAILED
    assert "Steps is 100000" in view.error


def test_a_half_surrogate_in_an_infotext_loses_no_picture(jobs, hooks, engine, wait_for_end):
    run = engine.generate

    def with_surrogate(request, **arguments):
        for event in run(request, **arguments):
            yield dataclasses.replace(event, infotext="half \ud83d") if hasattr(event, "infotext") else event

    engine.generate = with_surrogate
    with jobs:
        view = wait_for_end(jobs, jobs.submit(REQUEST))
    assert (view.state, view.images[0].infotext) == (JobState.FINISHED, "half ?")


def test_a_request_that_cannot_be_stored_is_told_in_a_sentence(jobs, database):
    with writing(database), pytest.raises(ResourceError, match=r"cannot be written to \(database is locked\)"):
        jobs.submit(REQUEST)
    assert jobs.queue() == []
