"""What comes back from the browser is only used where it fits; pictures and masks go both ways."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence

import gradio as gr
import pytest
from PIL import Image

from webui.core.errors import InvalidRequest
from webui.core.infotext import KnownModels
from webui.core.requests import Txt2Img
from webui.gallery import png_bytes
from webui.jobs.views import JobState, JobView
from webui.ui.components.form import Form
from webui.ui.components.job_panel import Watchers, follow
from webui.ui.components.studio import pasted_values
from webui.ui.memory import job_ids, restorable
from webui.ui.pictures import editor_pictures, mask_layer, uploaded_path
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


def test_a_mask_is_what_was_drawn():
    layer = Image.new("RGBA", (8, 8), (255, 255, 255, 0))
    layer.paste((255, 255, 255, 160), (2, 2, 5, 5))
    picture, mask = editor_pictures({"background": Image.new("RGBA", (8, 8), "red"), "layers": [layer]})
    with Image.open(io.BytesIO(mask)) as drawn, Image.open(io.BytesIO(picture)) as opened:
        assert (drawn.mode, drawn.getbbox(), drawn.getextrema()) == ("L", (2, 2, 5, 5), (0, 255))
        assert (opened.mode, opened.size) == ("RGB", (8, 8))


@pytest.mark.parametrize("value", [None, {"background": None, "layers": []}])
def test_an_editor_without_a_picture_is_told(value):
    with pytest.raises(InvalidRequest, match="no picture"):
        editor_pictures(value)


def test_an_editor_without_a_mask_is_told():
    empty = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    with pytest.raises(InvalidRequest, match="Nothing is masked"):
        editor_pictures({"background": Image.new("RGB", (8, 8)), "layers": [empty]})


def test_a_mask_comes_back_as_the_layer_it_was():
    mask = Image.new("L", (4, 4), 0)
    mask.putpixel((1, 2), 255)
    with Image.open(io.BytesIO(mask_layer(png_bytes(mask), 0.5))) as layer:
        assert layer.getpixel((1, 2)) == (255, 255, 255, 128)
        assert layer.getpixel((0, 0))[3] == 0


def test_uploads_are_paths():
    assert uploaded_path({"path": "/a/b.png"}).name == "b.png"
    assert uploaded_path(None) is None
    assert uploaded_path({"url": "http://example.org"}) is None


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
