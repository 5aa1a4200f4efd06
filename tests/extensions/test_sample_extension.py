"""The sample in the guide works, installed from a git repository as a newcomer would."""

import asyncio
import shutil
from pathlib import Path

import gradio as gr
import pytest
from PIL import Image

from webui.core.events import Step
from webui.core.requests import Txt2Img
from webui.extensions import Tab

SAMPLE = Path(__file__).parent / "sample_extension"
WHITE = Image.new("RGB", (64, 48), "white")


@pytest.fixture
def sample(host, git, tmp_path):
    source = tmp_path / "sources" / "sample_extension"
    shutil.copytree(SAMPLE, source, ignore=shutil.ignore_patterns("__pycache__"))
    git("init", "-q", source)
    git("-C", source, "add", ".")
    git("-C", source, "commit", "-q", "-m", "sample")
    name = host.install(str(source))
    host.enable(name)
    return name


def test_what_is_shown_of_it(host, sample):
    (shown,) = host.extensions()
    assert shown.description.startswith("Vignette: darkens")
    assert (shown.version, shown.loaded, shown.error) == ("1.0", True, None)
    assert shown.hooks == ("atelier_settings", "atelier_process_image", "atelier_on_step", "atelier_tabs")


def test_it_darkens_the_corners_as_set(host, sample):
    image = host.process_image(WHITE, Txt2Img())
    assert image.size == WHITE.size
    assert image.getpixel((32, 24)) >= (250, 250, 250)
    assert image.getpixel((0, 0)) <= (140, 140, 140)
    host.save(sample, {"strength": 0})
    assert host.process_image(WHITE, Txt2Img()).tobytes() == WHITE.tobytes()
    host.save(sample, {"strength": 1, "enabled": False})
    assert host.process_image(WHITE, Txt2Img()) is WHITE


def test_its_tab_shows_the_picture_and_the_steps(host, sample):
    for index in (1, 2, 3):
        host.on_step(Txt2Img(), Step(index=index, total=3, batch=0))
    ((_, tab),) = host.tabs()
    page = asyncio.run(page_with(tab))
    assert host.error(sample) is None
    (click,) = [function for function in page.fns.values() if function.targets[0][1] == "click"]
    picture, steps = click.fn(WHITE)
    assert picture.getpixel((0, 0)) != (255, 255, 255)
    assert steps == "3"


async def page_with(tab: Tab) -> gr.Blocks:
    """A coroutine, because outside of a running loop gradio makes event loops that it never closes."""
    with gr.Blocks() as page, gr.Tab(tab.title):
        tab.build()
    return page
