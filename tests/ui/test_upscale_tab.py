"""The upscale tab's menu begins with what is shipped, and the offer's words are shown as text."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import gradio as gr
import pytest

from webui.core.paths import REPOSITORY
from webui.core.ports import OfferStatus
from webui.ui.components.form import Form
from webui.ui.tabs.upscale import add_offer, add_upscale_fields, first_upscaler, offer_note, wire_offer


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


class Offer:
    """A model that nobody has fetched yet; counts who asks."""

    name, title, megabytes = "m", "Model", 3

    def __init__(self):
        self.asked = 0

    def fetch(self):
        self.asked += 1

    def watch(self):
        yield OfferStatus(phase="offered")


@pytest.fixture
def offer():
    return Offer()


@pytest.fixture
def handlers(offer):
    """What runs when the page is loaded, and when the button is clicked."""
    services = SimpleNamespace(upscaler_offer=offer, catalogue=SimpleNamespace(upscalers=lambda: ("Lanczos",)))

    async def build():  # Gradio wants an event loop, and would leave one of its own open
        with gr.Blocks() as made:
            form = Form(tab="upscale")
            add_upscale_fields(form, ("Lanczos",))
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
