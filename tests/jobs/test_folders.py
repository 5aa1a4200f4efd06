"""A folder worked through: which files, which requests, where results go, and going on after an end of any kind."""

from __future__ import annotations

import dataclasses

import pytest
from PIL import Image

from webui.core.errors import InvalidRequest
from webui.core.infotext import KnownModels
from webui.core.requests import HiresFix, Img2Img, Inpaint, Txt2Img, Upscale
from webui.gallery import png_bytes, read_infotext
from webui.jobs.folders import FolderBatch, is_made, listed, named_folder, target_at, with_own_parameters
from webui.jobs.store import JobStore
from webui.jobs.views import FolderFile, JobState

INFOTEXT = "a star\nNegative prompt: rain\nSteps: 7, Sampler: Euler a, CFG scale: 3, Seed: 9, Size: 64x96, Model: gone"
IMG2IMG = Img2Img(init_image=b"", prompt="form", steps=2, width=64, height=64, seed=5)


@pytest.fixture
def inputs(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for number, name in enumerate(("b.png", "a.jpg")):
        Image.new("RGB", (8, 8), (number, 9, 9)).save(folder / name)
    return folder


@pytest.fixture
def batch(inputs, tmp_path):
    return FolderBatch(inputs=inputs, outputs=tmp_path / "out")


def names(files):
    return [(file.source.name, file.target.name, file.mask and file.mask.name) for file in files]


def test_results_have_the_names_of_what_they_were_made_from(batch, inputs):
    for name in (".hidden.png", "notes.txt", "b.webp"):
        (inputs / name).touch()
    (inputs / "folder.png").mkdir()
    assert names(listed(batch, masked=False)) == [
        ("a.jpg", "a.png", None), ("b.png", "b.png", None), ("b.webp", "b.webp.png", None)
    ]  # fmt: skip


def test_masks_go_by_name(batch, tmp_path):
    masks = tmp_path / "masks"
    masks.mkdir()
    (masks / "a.png").touch()
    with_masks = dataclasses.replace(batch, masks=masks)
    with pytest.raises(InvalidRequest, match=r"has none for b\.png"):
        listed(with_masks, masked=True)
    (masks / "b.png").touch()
    assert [mask for _, _, mask in names(listed(with_masks, masked=True))] == ["a.png", "b.png"]
    with pytest.raises(InvalidRequest, match="needs a folder of masks"):
        listed(batch, masked=True)


def test_folders_that_cannot_be_meant_are_told(batch, inputs, tmp_path):
    for wrong, words in (
        (dataclasses.replace(batch, inputs=tmp_path / "none"), "cannot be read"),
        (dataclasses.replace(batch, inputs=tmp_path / "empty"), "holds no pictures"),
        (dataclasses.replace(batch, outputs=inputs / "." / "x" / ".."), "is the input folder"),
    ):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(InvalidRequest, match=words):
            listed(wrong, masked=False)
    for text, words in ((" ", "output folder is empty"), ("pictures/out", "give a whole path"), (None, "is empty")):
        with pytest.raises(InvalidRequest, match=words):
            named_folder("output folder", text)
    assert named_folder("output folder", f" {tmp_path} ") == tmp_path


def test_several_pictures_of_one_are_counted(tmp_path):
    file = FolderFile(source=tmp_path / "a.jpg", target=tmp_path / "a.png")
    assert [target_at(file.target, index).name for index in range(3)] == ["a.png", "a-2.png", "a-3.png"]
    file.target.touch()
    assert is_made(file, Upscale(image=b""))
    assert not is_made(file, dataclasses.replace(IMG2IMG, batch_count=2))


def test_a_picture_s_own_parameters_are_those_chosen():
    made, told = with_own_parameters(IMG2IMG, INFOTEXT, ("Prompt", "Seed", "Size", "Sampler"), KnownModels())
    assert (made.prompt, made.seed, made.width, made.height, made.sampler) == ("a star", 9, 64, 96, "Euler a")
    assert (made.negative_prompt, made.steps, made.cfg_scale) == ("", 2, IMG2IMG.cfg_scale)
    assert told == ()
    for text, own in (("", ("Prompt",)), ("no parameters", ("Prompt",)), (INFOTEXT, ())):
        assert with_own_parameters(IMG2IMG, text, own, KnownModels()) == (IMG2IMG, ())
    _, told = with_own_parameters(IMG2IMG, INFOTEXT, ("Checkpoint",), KnownModels(checkpoints={"first": ""}))
    assert len(told) == 1
    assert "'gone'" in told[0]


def wait(jobs, batch_id):
    return list(jobs.watch_batch(batch_id))[-1]


def test_a_folder_becomes_jobs_and_what_is_made_is_skipped(jobs, batch, inputs, engine):
    (inputs / "broken.png").write_bytes(b"\x89PNG and nothing more")
    (inputs / "a.png").write_bytes(png_bytes(Image.new("RGB", (8, 8)), INFOTEXT))
    (inputs / "a.jpg").unlink()
    own = dataclasses.replace(batch, own=("Prompt",))
    with jobs:
        first = wait(jobs, jobs.submit_folder(IMG2IMG, own, models=KnownModels()))
        assert (first.total, first.finished, first.skipped, first.failed, first.cancelled) == (3, 2, 0, 1, 0)
        assert first.failures[0][0] == "broken.png"
        assert "is not a picture" in first.failures[0][1]
        again = wait(jobs, jobs.submit_folder(IMG2IMG, own, models=KnownModels()))
        assert (again.total, again.finished, again.skipped, again.failed) == (3, 0, 2, 1)
    assert [request.prompt for request, _ in engine.calls] == ["a star", "form"]
    assert all(request.init_image.startswith(b"\x89PNG") for request, _ in engine.calls)
    assert read_infotext(engine.calls[0][0].init_image) == INFOTEXT
    assert sorted(path.name for path in batch.outputs.iterdir()) == ["a.png", "b.png"]
    assert read_infotext(batch.outputs / "a.png") == "seed 5"
    view = jobs.recent(10)[-1]
    assert (view.file.source.name, view.images[0].path) == ("a.png", batch.outputs / "a.png")


def test_masks_are_read_with_their_pictures(jobs, batch, inputs, engine, tmp_path):
    masks = tmp_path / "masks"
    masks.mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGBA", (8, 8), (255, 255, 255, 90)).save(masks / name)
    request = Inpaint(init_image=b"", mask=b"", steps=1, width=64, height=64)
    with jobs:
        done = wait(jobs, jobs.submit_folder(request, dataclasses.replace(batch, masks=masks), models=KnownModels()))
    assert done.finished == 2
    assert engine.calls[0][0].mask == png_bytes(Image.new("RGBA", (8, 8), (255, 255, 255, 90)))


def test_a_bad_request_queues_nothing(jobs, batch):
    with pytest.raises(InvalidRequest, match="Width is 130"):
        jobs.submit_folder(dataclasses.replace(IMG2IMG, width=130), batch, models=KnownModels())
    assert jobs.queue() == []


def test_others_go_first_and_stopping_stops_the_rest(jobs, batch, engine):
    with jobs:
        engine.hold(1)
        batch_id = jobs.submit_folder(IMG2IMG, batch, models=KnownModels())
        engine.wait_until_held()
        single = jobs.submit(Txt2Img(prompt="one", steps=1, width=64, height=64))
        queue = jobs.queue()
        assert [view.state for view in queue] == [JobState.RUNNING, JobState.QUEUED, JobState.QUEUED]
        assert queue[1].id == single
        assert [view.batch for view in queue] == [batch_id, "", batch_id]
        assert [jobs.view(view.id).position for view in queue] == [0, 1, 2]
        assert jobs.batch(batch_id).running == "a.jpg"
        jobs.cancel_batch(batch_id)
        engine.let_go()
        assert wait(jobs, batch_id).cancelled == 2
    assert list(jobs.watch_batch("unknown")) == []
    assert not batch.outputs.exists()


def test_a_restart_goes_on_with_the_folder(batch, database, files, make_jobs):
    store = JobStore(database, files.outputs)
    before = make_jobs()
    batch_id = before.submit_folder(IMG2IMG, batch, models=KnownModels())
    killed = store.claim_next()
    store.reserve_image(killed, index=0, seed=5, infotext="seed 5")
    batch.outputs.mkdir()
    (batch.outputs / "a.png").write_bytes(png_bytes(Image.new("RGB", (8, 8)), "seed 5"))
    (batch.outputs / ".b.png.part").touch()
    with make_jobs() as jobs:
        assert wait(jobs, batch_id).finished == 2
        assert [image.path.name for image in jobs.view(killed).images] == ["a.png"]
    assert sorted(path.name for path in batch.outputs.iterdir()) == ["a.png", "b.png"]


def test_a_file_that_came_meanwhile_is_left(jobs, batch, inputs, engine):
    (inputs / "b.png").unlink()
    with jobs:
        engine.hold(1)
        batch_id = jobs.submit_folder(IMG2IMG, batch, models=KnownModels())
        engine.wait_until_held()
        batch.outputs.mkdir()
        (batch.outputs / "a.png").write_bytes(b"mine")
        engine.let_go()
        assert wait(jobs, batch_id).finished == 1
    assert (batch.outputs / "a.png").read_bytes() == b"mine"
    assert "is there already" in jobs.recent(1)[0].notices[0]


def test_pictures_inside_groups_are_kept_apart_and_come_back(database, files):
    store = JobStore(database, files.outputs)
    request = Txt2Img(prompt="a star", hires=HiresFix(enabled=True, first_pass=b"\x00png"))
    job_id = store.add(request, "")
    assert store.light_view(job_id).request.hires.first_pass == b""
    assert store.view(job_id).request == store.work(job_id).request == request
