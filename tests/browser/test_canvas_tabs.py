"""The canvas in the img2img and inpaint tabs of the real page: what is drawn is what arrives at the engine."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import expect

from webui.core.codec import request_from_json
from webui.core.requests import Outpaint, Request

WIDTH, HEIGHT = 256, 192
MARGIN = 8  # around the picture when it is fitted
BRUSH = 19  # a tenth of the shorter side


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture to draw on."""
    path = tmp_path_factory.mktemp("pictures") / "harbour.png"
    Image.new("RGB", (WIDTH, HEIGHT), (40, 90, 120)).save(path)
    return path


def canvas(page, tab: str):
    return page.locator(f"#{tab}_image .canvas")


def stroke(page, tab: str, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Draws between two pixels of the fitted picture."""
    surface = page.locator(f"#{tab}_image .canvas-surface")
    surface.scroll_into_view_if_needed()
    box = surface.bounding_box()
    scale = min((box["width"] - 2 * MARGIN) / WIDTH, (box["height"] - 2 * MARGIN) / HEIGHT)
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    first, last = ((middle[0] + (x - WIDTH / 2) * scale, middle[1] + (y - HEIGHT / 2) * scale) for x, y in (start, end))
    page.mouse.move(*first)
    page.mouse.down()
    page.mouse.move(*last, steps=4)
    page.mouse.up()


def generated(page, root: Path, tab: str) -> Request:
    """The request that arrives at the engine when Generate is clicked."""
    newest = root / "last_request.json"
    newest.unlink(missing_ok=True)
    page.click(f"#{tab}_generate")
    while not newest.exists():
        page.wait_for_timeout(50)
    page.wait_for_selector(f"#{tab}_live .live[data-state=finished]", state="attached")
    return request_from_json(json.loads(newest.read_text(encoding="utf-8")))


def opened(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png))


def test_a_drawn_mask_is_inpainted_and_a_picture_grows_without_one(page, page_server, picture):
    page.get_by_role("tab", name="Inpaint", exact=True).click()
    page.set_input_files("#inpaint_image input[type=file] >> nth=0", picture)
    expect(canvas(page, "inpaint")).to_have_attribute("data-state", "drawing")
    page.fill("#inpaint_steps input[type=number]", "2")
    stroke(page, "inpaint", (60, 100), (140, 100))
    request = generated(page, page_server.root, "inpaint")
    wanted = (60 - BRUSH / 2, 100 - BRUSH / 2, 140 + BRUSH / 2, 100 + BRUSH / 2)
    found = opened(request.mask).getbbox()
    assert all(abs(one - other) <= 2.5 for one, other in zip(found, wanted, strict=True))
    assert opened(request.init_image).size == opened(request.mask).size == (WIDTH, HEIGHT)

    page.click("#inpaint_image .canvas-clear")
    page.get_by_text("Outpaint: make the picture larger").click()
    page.click("#inpaint_outpaint_right")
    expect(page.locator("#inpaint_width input")).to_have_value(str(WIDTH + 128))
    expect(page.locator("#inpaint_height input")).to_have_value(str(HEIGHT))
    request = generated(page, page_server.root, "inpaint")
    assert (request.outpaint, request.width, request.mask) == (Outpaint(right=128), WIDTH + 128, b"")


def test_masks_are_found_by_words_or_it_is_told_what_is_missing(page, picture):
    page.get_by_role("tab", name="Inpaint", exact=True).click()
    page.set_input_files("#inpaint_image input[type=file] >> nth=0", picture)
    expect(canvas(page, "inpaint")).to_have_attribute("data-state", "drawing")
    page.get_by_text("Find the mask", exact=True).click()
    words = page.locator("#inpaint_mask_words :is(input, textarea)")
    words.fill("nothing")
    page.click("#inpaint_mask_by_words")
    expect(page.locator(".toast-body")).to_contain_text("Masking by words needs a CLIPSeg model")
    undo = page.locator("#inpaint_image .canvas-undo")
    expect(undo).to_be_disabled()
    words.fill("the harbour")
    page.click("#inpaint_mask_by_words")
    expect(undo).to_be_enabled()


def test_a_sketch_on_an_empty_canvas_is_what_img2img_starts_from(page, page_server):
    page.get_by_role("tab", name="img2img", exact=True).click()
    page.fill("#img2img_width input", str(WIDTH))
    page.fill("#img2img_height input", str(HEIGHT))
    page.fill("#img2img_steps input[type=number]", "2")
    page.click("#img2img_image .canvas-blank")
    expect(canvas(page, "img2img")).to_have_attribute("data-state", "drawing")
    page.fill("#img2img_image input[type=color]", "#2040c0")
    stroke(page, "img2img", (60, 100), (140, 100))
    request = generated(page, page_server.root, "img2img")
    sketch = opened(request.init_image).convert("RGB")
    assert sketch.size == (WIDTH, HEIGHT)
    assert [sketch.getpixel((x, 100)) for x in (20, 100, 200)] == [(255, 255, 255), (32, 64, 192), (255, 255, 255)]
