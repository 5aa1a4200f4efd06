"""What comes back from the browser is only used where it fits; pictures and masks go both ways."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence

import gradio as gr
import pytest
from PIL import Image

from webui.core.errors import InvalidRequest
from webui.core.geometry import Size
from webui.core.infotext import KnownModels
from webui.core.requests import Txt2Img
from webui.jobs.views import JobState, JobView
from webui.ui.components.canvas import canvas_value
from webui.ui.components.form import Form
from webui.ui.components.job_panel import Watchers, follow
from webui.ui.components.studio import pasted_values
from webui.ui.memory import job_ids, restorable
from webui.ui.pictures import drawn_pictures, uploaded_path
from webui.ui.toasts import guarded


@pytest.fixture
def form() -> Form:
    """A form without a page around it: Gradio's Blocks would leave event loops open."""
    made = Form(tab="txt2img")
    made.fields |= {name: gr.Textbox() for name in ("prompt", "negative_prompt")}
    made.choice("sampler", "Sampler", "Euler", ("Euler", "DDIM"))
    made.choice("schedule_type", "Schedule type", "Automatic", ("Automatic", "Karras"))
    made.slider("steps", "Steps", 20, (1, 150), 1)
    made.slider("cfg_scale", "CFG scale", 7, (1, 30), 0.5)
    for name in ("width", "height", "seed"):
        made.number(name, name, 64)
    return made


def test_only_what_fits_is_restored(form):
    stored = {
        "prompt": "a star",
        "negative_prompt": 3,
        "sampler": "Gone",
        "schedule_type": "Karras",
        "steps": 900,
        "cfg_scale": 5.5,
        "width": 130,
        "height": None,
        "seed": "x",
        "unknown": 1,
    }
    kept = {"prompt": "a star", "schedule_type": "Karras", "cfg_scale": 5.5, "width": 130, "height": None}
    assert restorable(form, stored) == kept
    for junk in (None, [], "text", 3):
        assert restorable(form, junk) == {}


def test_job_ids_are_strings_or_nothing():
    assert job_ids(["a", 3, None, "b"]) == ["a", "b"]
    assert job_ids({"a": 1}) == []


def test_values_and_updates_keep_the_order(form):
    values = form.values(tuple(range(len(form.fields))))
    assert values["prompt"] == 0
    updates = form.updates({"seed": 5})
    assert updates[list(form.fields).index("seed")] == 5
    assert updates.count(gr.skip()) == len(updates) - 1


def test_pasting_changes_what_the_text_says_and_nothing_else():
    form_holds = {"prompt": "old", "negative_prompt": "bad", "steps": 20, "width": 130, "height": 64, "seed": -1}
    text = "new\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 3"
    changed = pasted_values("txt2img", text, form_holds, KnownModels())
    assert changed == {"prompt": "new", "negative_prompt": "", "seed": 3}


def test_a_pasted_size_ends_resize_by():
    form_holds = {"prompt": "a", "negative_prompt": "", "width": 64, "resize_by": 2, "mask_blur_y": "", "steps": 20}
    text = "a\nSteps: 20, Seed: 3, Size: 64x64, Mask blur y: 7"
    assert pasted_values("inpaint", text, form_holds, KnownModels()) == {"mask_blur_y": "7", "resize_by": 0}
    assert pasted_values("inpaint", "a\nSteps: 20, Seed: 3, CFG scale: 7", form_holds, KnownModels()) == {}


def test_pasting_sets_the_checkpoint_the_section_more_and_what_only_the_tab_has(monkeypatch):
    told: list[str] = []
    monkeypatch.setattr("webui.ui.components.studio.warn", told.append)
    text = (
        "new\nSteps: 20, Sampler: Euler, Seed: 3, Model: other, Model hash: 0123456789, Denoising strength: 0.5, "
        "Clip skip: 2, Eta: 0.5, VAE: gone.pt"
    )
    form_holds = {
        "prompt": "old", "checkpoint": "mine", "clip_skip": 1, "sampler_options.eta": "", "noise_source": "CPU",
        "vae": "Automatic", "denoising_strength": 0.75, "variation.strength": 0.5,
    }  # fmt: skip
    models = KnownModels(checkpoints={"mine": "", "theirs": "0123456789"}, vaes={})
    assert pasted_values("img2img", text, form_holds, models) == {
        "prompt": "new", "checkpoint": "theirs", "clip_skip": 2, "sampler_options.eta": "0.5", "noise_source": "GPU",
        "denoising_strength": 0.5, "variation.strength": 0.0,
    }  # fmt: skip
    assert len(told) == 1
    assert "VAE 'gone.pt'" in told[0]


@pytest.fixture
def upload(tmp_path, monkeypatch):
    """upload(image) lays an image among the uploads and returns what a canvas says about it."""
    folder = tmp_path / "uploads"
    folder.mkdir()
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(folder))

    def lay(image: Image.Image) -> dict[str, str]:
        path = folder / f"{len(list(folder.iterdir()))}.png"
        image.save(path)
        return {"path": str(path)}

    return lay


def opened(png: bytes) -> Image.Image:
    with Image.open(io.BytesIO(png)) as image:
        image.load()
        return image


def layer(colour: tuple[int, int, int, int], box: tuple[int, int, int, int]) -> Image.Image:
    made = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    made.paste(colour, box)
    return made


def test_a_canvas_gives_the_picture_and_the_mask_with_its_greys(upload):
    mask = layer((224, 82, 110, 255), (2, 2, 5, 5))
    mask.putpixel((5, 2), (224, 82, 110, 90))
    drawn = drawn_pictures("picture", {"picture": upload(Image.new("RGB", (8, 8), "red")), "mask": upload(mask)}, 100)
    assert (opened(drawn.picture).mode, drawn.size) == ("RGB", Size(8, 8))
    seen = opened(drawn.mask)
    assert (seen.mode, seen.getbbox()) == ("L", (2, 2, 6, 5))
    assert [seen.getpixel(at) for at in ((2, 2), (5, 2), (6, 2))] == [255, 90, 0]


def test_paint_goes_onto_the_picture_and_is_masked(upload):
    value = {"picture": upload(Image.new("RGB", (8, 8), "red")), "paint": upload(layer((0, 0, 255, 255), (0, 0, 2, 8)))}
    drawn = drawn_pictures("picture", {**value, "mask": None}, 100)
    picture = opened(drawn.picture)
    assert [picture.getpixel((x, 3)) for x in (1, 2)] == [(0, 0, 255), (255, 0, 0)]
    assert opened(drawn.mask).getbbox() == (0, 0, 2, 8)


def test_a_transparent_picture_stays_transparent_where_nothing_is_painted(upload):
    value = {"picture": upload(Image.new("RGBA", (8, 8), (1, 2, 3, 0)))}
    drawn = drawn_pictures("picture", {**value, "paint": upload(layer((0, 0, 255, 255), (0, 0, 2, 8)))}, 100)
    assert [opened(drawn.picture).getpixel((x, 3)) for x in (1, 2)] == [(0, 0, 255, 255), (1, 2, 3, 0)]


def test_a_canvas_without_a_mask_says_so_by_an_empty_one(upload):
    blank = upload(Image.new("RGBA", (8, 8), (0, 0, 0, 0)))
    assert drawn_pictures("picture", {"picture": upload(Image.new("RGB", (8, 8))), "mask": blank}, 100).mask == b""


@pytest.mark.parametrize("value", [None, {"picture": None}, "text"])
def test_a_canvas_without_a_picture_is_told(value):
    with pytest.raises(InvalidRequest, match="There is no picture to inpaint"):
        drawn_pictures("picture to inpaint", value, 100)


def test_a_layer_of_another_size_is_told(upload):
    value = {"picture": upload(Image.new("RGB", (8, 6))), "mask": upload(layer((0, 0, 0, 255), (0, 0, 1, 1)))}
    with pytest.raises(InvalidRequest, match="8x8 and the picture 8x6"):
        drawn_pictures("picture", value, 100)


def test_only_uploads_are_read(upload, tmp_path):
    inside = upload(Image.new("RGB", (1, 1)))
    assert uploaded_path(inside).name == "0.png"
    assert uploaded_path(None) is None
    assert uploaded_path({"url": "http://example.org"}) is None
    outside = tmp_path / "secret.png"
    outside.touch()
    (tmp_path / "uploads" / "link.png").symlink_to(outside)
    for path in (str(outside), "/etc/passwd", f"{tmp_path}/uploads/../secret.png", f"{tmp_path}/uploads/link.png"):
        with pytest.raises(InvalidRequest, match="was not uploaded to this server"):
            uploaded_path({"path": path})


def test_the_same_picture_sent_twice_is_two_values():
    assert canvas_value(picture="a.png")["stamp"] != canvas_value(picture="a.png")["stamp"]


class FakeJobs:
    """The part of the queue that following a job needs."""

    def __init__(self, **states: Sequence[JobState]) -> None:
        self.states = {name: list(sequence) for name, sequence in states.items()}

    def view(self, job_id: str) -> JobView | None:
        return self._view(job_id, self.states[job_id][0]) if job_id in self.states else None

    def watch(self, job_id: str) -> Iterator[JobView]:
        for state in self.states[job_id]:
            yield self._view(job_id, state)

    def _view(self, job_id: str, state: JobState) -> JobView:
        return JobView(
            id=job_id,
            task="txt2img",
            state=state,
            request=Txt2Img(),
            created_at=0.0,
            position=0,
            progress=None,
            images=(),
            error=None,
            session="",
        )


def test_unfinished_jobs_are_followed_one_after_the_other():
    jobs = FakeJobs(
        old=[JobState.FINISHED],
        first=[JobState.RUNNING, JobState.FINISHED],
        second=[JobState.QUEUED, JobState.FINISHED],
    )
    seen = [(view.id, view.state.value, waiting) for view, waiting in follow(jobs, ["old", "gone", "first", "second"])]
    assert seen == [
        ("first", "running", 1),
        ("first", "finished", 1),
        ("second", "queued", 0),
        ("second", "finished", 0),
    ]


def test_the_last_job_is_shown_when_all_have_ended():
    jobs = FakeJobs(a=[JobState.FAILED], b=[JobState.FINISHED])
    assert [view.id for view, _ in follow(jobs, ["a", "b"])] == ["b"]
    assert list(follow(jobs, ["gone"])) == [(None, 0)]


def test_a_newer_watcher_takes_over():
    watchers = Watchers()
    older = watchers.newest_only("page", iter([[1], [2], [3]]))
    assert next(older) == [1]
    newer = watchers.newest_only("page", iter([[4], [5]]))
    assert next(newer) == [4]
    assert list(older) == []
    assert list(newer) == [[5]]
    assert watchers._newest == {}


def test_errors_become_toasts_with_their_sentence_escaped():
    def fail(error: Exception) -> None:
        raise error

    with pytest.raises(gr.Error) as told:
        guarded(fail)(InvalidRequest("Width is <130>."))
    assert told.value.message == "Width is &lt;130&gt;."
    with pytest.raises(gr.Error) as unexpected:
        guarded(fail)(KeyError("secret"))
    assert "KeyError" in unexpected.value.message
    assert "secret" not in unexpected.value.message


def test_a_generator_stays_one():
    def count() -> Iterator[int]:
        yield 1
        raise InvalidRequest("Enough.")

    counted = guarded(count)()
    assert next(counted) == 1
    with pytest.raises(gr.Error, match=r"Enough\."):
        next(counted)
