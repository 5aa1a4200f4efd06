"""The upscale tab's menu begins with what is shipped, and the offer's words are shown as text."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest

from webui.core.errors import InvalidRequest
from webui.core.geometry import Size
from webui.core.paths import REPOSITORY
from webui.core.ports import CheckpointInfo, OfferStatus
from webui.core.requests import DiffusionUpscaler, FaceRestoration, Upscale
from webui.core.validation import validate
from webui.jobs.folders import FolderBatch
from webui.jobs.views import BatchView
from webui.ui.components.folder_batch import add_folder_batch, batch_line, folder_batch
from webui.ui.components.form import Form
from webui.ui.tabs.upscale import (
    FOLDER,
    ONE,
    SEVERAL,
    add_offer,
    add_upscale_fields,
    diffusion_upscalers,
    first_upscaler,
    offer_note,
    uploads,
    upscale_request,
    wire_offer,
)


def test_a_fresh_form_shows_the_quick_network_that_is_shipped():
    from webui.checkpoints.scan import CheckpointFolder

    names = CheckpointFolder(REPOSITORY / "models").upscalers()
    assert {"realesr-animevideov3-x4", "realesrgan-x4plus-anime"} <= set(names)
    assert first_upscaler(names) == "realesr-animevideov3-x4"


def test_a_models_folder_without_networks_begins_with_a_filter():
    assert first_upscaler(("Lanczos", "Nearest")) == "Lanczos"


@pytest.mark.parametrize(
    ("phase", "detail", "note"),
    [
        ("offered", "", ""),
        ("fetching", "Fetching it.", "<p class='note' role='status'>Fetching it.</p>"),
        ("failed", "<b>no</b>", "<p class='extension-error' role='alert'>&lt;b&gt;no&lt;/b&gt;</p>"),
    ],
)
def test_what_is_said_about_the_offer(phase, detail, note):
    assert offer_note(OfferStatus(phase=phase, detail=detail)) == note


class Models:
    """One filter, one upscaler that is a checkpoint, no network for faces."""

    def upscalers(self):
        return ("Lanczos", "drawn")

    def checkpoints(self):
        return (CheckpointInfo(name="drawn", family="x4", native_size=Size(64, 64)),)

    def face_restorers(self):
        return ()


class Offer:
    """A model that nobody has fetched yet; counts who asks."""

    name, title, megabytes = "m", "Model", 3

    def __init__(self):
        self.asked = 0

    def fetch(self):
        self.asked += 1

    def watch(self):
        yield OfferStatus(phase="offered")


def built(models) -> tuple[Form, tuple[gr.Column, gr.Column]]:
    async def build():
        with gr.Blocks():
            form = Form(tab="upscale")
            return form, add_upscale_fields(form, models)

    return asyncio.run(build())


def test_a_fresh_form_is_a_valid_request_of_defaults():
    form, (faces, diffusion) = built(Models())
    request = upscale_request({name: field.value for name, field in form.fields.items()}, b"png")
    assert request == Upscale(image=b"png")
    validate(request)
    assert not faces.visible, "without a network for faces there is nothing to choose"
    assert not diffusion.visible
    assert diffusion_upscalers(Models()) == {"drawn"}


def test_what_the_form_asks_for():
    values = {
        "upscaler": "Nearest", "scale": 2, "width": 640.0, "height": 480, "crop": False, "upscaler_2": "Lanczos",
        "upscaler_2_visibility": 0.25, "tile": 64, "overlap": 8, "faces.model": "codeformer", "faces.visibility": 0.5,
        "faces.weight": 0.75, "diffusion.prompt": "a star", "diffusion.negative_prompt": None, "diffusion.steps": 9,
        "diffusion.cfg_scale": 3, "diffusion.noise_level": 30, "diffusion.seed": 4,
    }  # fmt: skip
    made = upscale_request(values, b"png")
    assert made == Upscale(
        image=b"png", upscaler="Nearest", scale=2.0, width=640, height=480, crop=False, upscaler_2="Lanczos",
        upscaler_2_visibility=0.25, tile=64, overlap=8,
        faces=FaceRestoration(model="codeformer", visibility=0.5, weight=0.75),
        diffusion=DiffusionUpscaler(prompt="a star", steps=9, cfg_scale=3.0, noise_level=30, seed=4),
    )  # fmt: skip
    with pytest.raises(InvalidRequest, match=r"Target width is 1\.5"):
        upscale_request({**values, "width": 1.5}, b"png")


def test_which_uploads_are_meant(monkeypatch):
    monkeypatch.setattr("webui.ui.pictures.get_upload_folder", lambda: "/up")
    one, two = {"path": "/up/one.png"}, {"path": "/up/two.png"}
    assert uploads(ONE, one, [two]) == [one]
    assert uploads(SEVERAL, one, [two, one]) == [two, one]
    for mode, picture, files in ((ONE, None, [two]), (SEVERAL, one, None), (FOLDER, None, None)):
        with pytest.raises(InvalidRequest, match="no picture to upscale"):
            uploads(mode, picture, files)


def folder(**changes) -> BatchView:
    values = {"total": 80, "skipped": 3, "finished": 12, "failed": 1, "cancelled": 0, "running": "a<b>.png"}
    view = {"id": "x", "outputs": Path("/out"), "failures": (("c<d>.png", "It is <broken>."),), **values, **changes}
    return BatchView(**view)


def test_how_far_a_folder_is():
    line = batch_line(folder())
    assert "<span>12 of 80, 3 skipped, 1 failed</span><span>a&lt;b&gt;.png …</span>" in line
    assert "aria-valuenow='20'" in line
    assert "<b>c&lt;d&gt;.png</b> It is &lt;broken&gt;." in line
    ended = batch_line(folder(finished=70, cancelled=6, running="", failures=()))
    assert "70 of 80, 3 skipped, 1 failed, 6 stopped" in ended
    assert "Results: /out" in ended
    assert batch_line(None) == ""


def test_folders_are_named_by_whole_paths():
    batch = folder_batch({"inputs": "/in", "outputs": " /out ", "masks": ""}, ("Seed",))
    assert (batch.inputs, batch.outputs, batch.masks, batch.own) == (Path("/in"), Path("/out"), None, ("Seed",))
    with pytest.raises(InvalidRequest, match="folder of masks"):
        folder_batch({"inputs": "/in", "outputs": "/out", "masks": "masks"}, ())


@pytest.fixture
def offer():
    return Offer()


@pytest.fixture
def handlers(offer):
    """What runs when the page is loaded, and when the button is clicked."""
    services = SimpleNamespace(upscaler_offer=offer, catalogue=Models())

    async def build():  # Gradio wants an event loop, and would leave one of its own open
        with gr.Blocks() as made:
            form = Form(tab="upscale")
            add_upscale_fields(form, services.catalogue)
            wire_offer(made, services, form, *add_offer(offer))
        return made

    page = asyncio.run(build())
    look, fetch = [made.fn for made in page.fns.values()][-2:]
    return look, fetch


def request(**headers):
    return SimpleNamespace(client=SimpleNamespace(host="127.0.0.1"), headers={"host": "127.0.0.1:7860", **headers})


def test_who_sits_at_the_machine_is_offered_it(handlers, offer):
    look, fetch = handlers
    assert [row[0].visible for row in look(request())] == [True]
    assert len(list(fetch(request()))) == 1
    assert offer.asked == 1


@pytest.mark.parametrize("headers", [{"x-forwarded-for": "203.0.113.9"}, {"host": "abc.gradio.live"}])
def test_everybody_else_is_neither_offered_it_nor_obeyed(handlers, offer, headers):
    look, fetch = handlers
    assert list(look(request(**headers))) == []
    with pytest.raises(gr.Error, match="only be fetched from the machine"):
        list(fetch(request(**headers)))
    assert offer.asked == 0


def folder_handlers(services, made):
    """What runs when the page is loaded and when a folder is started."""

    async def build():
        with gr.Blocks() as page:
            box = gr.Textbox()
            add_folder_batch(page, services, tab="upscale", inputs=[box], make_request=made.append)
        return page

    named = {made.fn.__name__: made.fn for made in asyncio.run(build()).fns.values() if made.fn is not None}
    return named["greet"], named["begin"]


@pytest.mark.parametrize("headers", [{"x-forwarded-for": "203.0.113.9"}, {"host": "abc.gradio.live"}])
def test_only_who_sits_at_the_machine_names_its_folders(headers):
    asked: list[object] = []
    made: list[object] = []
    jobs = SimpleNamespace(submit_folder=lambda *given, **_: asked.append(given) or "id")
    services = SimpleNamespace(jobs=jobs, known_models=lambda: None)
    greet, begin = folder_handlers(services, made)
    with pytest.raises(gr.Error, match="only be worked through from the machine"):
        begin(request(**headers), ["/in", "/out", "form"])
    assert (asked, made) == ([], [])
    assert "only be worked through" in greet(request(**headers))[0]
    here = SimpleNamespace(**{**vars(request()), "session_hash": "me"})
    assert greet(here)[0] == ""
    assert begin(here, ["/in", "/out", "form"]) == "id"
    assert made == ["form"]
    assert asked[0][1] == FolderBatch(inputs=Path("/in"), outputs=Path("/out"))
