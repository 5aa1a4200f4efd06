"""The canvas alone, by mouse, keys and touch: what is drawn lies at the pixels that it was drawn on, and is kept.

It stands on a page of its own here, without a server, which makes these tests quick; that it works in the tabs of the
real page is tested in test_canvas_tabs.py.
"""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw
from playwright.sync_api import expect

ASSETS = Path(__file__).parents[2] / "webui" / "ui" / "assets"
ADDRESS = "http://canvas.test/"
WIDTH, HEIGHT = 256, 192
MARGIN = 8  # around the picture when it is fitted
BRUSH = 19  # a tenth of the shorter side

# Uploads stay in the page: their "url" is a blob's.
BARE = """<!doctype html><title>canvas</title><style>{style}</style>
<div class="picture-canvas" id="place"><div data-canvas="{options}"></div></div>
<script>window.atelier = {{}};</script><script>{document}</script><script>{canvas}</script>
<script>
  window.props = {{ value: null }};
  window.send = (value) => {{ props.value = value; told(); }};
  const upload = async (file) => ({{ path: file.name, url: URL.createObjectURL(file) }});
  atelier.mountCanvas(place, props, upload, (name, tell) => {{ window.told = tell; }});
</script>"""
HANDED_OVER = """async () => {
  const [value] = await atelier.withCanvas("bare", 0, [null]);
  const read = async ({ url }) => {
    const bytes = new Uint8Array(await (await fetch(url)).arrayBuffer());
    return btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
  };
  const read_all = Object.entries(value ?? {}).map(async ([what, file]) => [what, file && (await read(file))]);
  return Object.fromEntries(await Promise.all(read_all));
}"""


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture whose left upper corner is transparent."""
    made = Image.new("RGBA", (WIDTH, HEIGHT), (40, 90, 120, 255))
    draw = ImageDraw.Draw(made)
    draw.ellipse((90, 50, 180, 140), fill=(231, 180, 81, 255))
    draw.rectangle((0, 0, 15, 15), fill=(0, 0, 0, 0))
    path = tmp_path_factory.mktemp("pictures") / "harbour.png"
    made.save(path)
    return path


def show(page, picture: Path) -> None:
    """Opens a page with nothing but a canvas on `page`, and puts `picture` on it."""
    options = json.dumps({"id": "bare", "options": {"brushes": ["mask", "paint"], "words": "Drop", "blank": None}})
    parts = {part: (ASSETS / f"{name}.js").read_text() for part, name in PARTS.items()}
    style = (ASSETS / "canvas.css").read_text()
    body = BARE.format(style=style, options=options.replace('"', "&quot;"), **parts)
    page.route(f"{ADDRESS}**", lambda route: route.fulfill(body=body, content_type="text/html"))
    page.goto(ADDRESS)
    page.set_input_files("input[type=file] >> nth=0", picture)
    expect(page.locator(".canvas")).to_have_attribute("data-state", "drawing")


PARTS = {"document": "canvas_document", "canvas": "canvas"}


@pytest.fixture
def bare(new_page, picture):
    """A page with a canvas and the picture on it."""
    page = new_page()
    show(page, picture)
    return page


class Place:
    """Where pixels of the fitted picture lie on the screen, `zoom` times larger about the middle of the canvas."""

    def __init__(self, page, zoom: float = 1) -> None:
        box = page.locator(".canvas-surface").bounding_box()
        scale = min((box["width"] - 2 * MARGIN) / WIDTH, (box["height"] - 2 * MARGIN) / HEIGHT)
        self.middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        self.scale = scale * zoom

    def of(self, x: float, y: float) -> tuple[float, float]:
        return self.middle[0] + (x - WIDTH / 2) * self.scale, self.middle[1] + (y - HEIGHT / 2) * self.scale


def stroke(page, start: tuple[float, float], end: tuple[float, float], place: Place | None = None) -> None:
    place = place or Place(page)
    page.mouse.move(*place.of(*start))
    page.mouse.down()
    page.mouse.move(*place.of(*end), steps=4)
    page.mouse.up()


def handed_over(page) -> dict[str, Image.Image | None]:
    """The picture and the layers as the server would get them; empty without a picture."""
    files: dict[str, Any] = page.evaluate(HANDED_OVER)
    return {what: file and Image.open(io.BytesIO(base64.b64decode(file))) for what, file in files.items()}


def mask_of(page) -> Image.Image | None:
    layer = handed_over(page)["mask"]
    return None if layer is None else layer.getchannel("A")


def reached(start: tuple[float, float], end: tuple[float, float]) -> tuple[float, float, float, float]:
    """The box that a stroke of the first brush covers."""
    return start[0] - BRUSH / 2, start[1] - BRUSH / 2, end[0] + BRUSH / 2, end[1] + BRUSH / 2


def close(found: tuple[int, ...] | None, wanted: tuple[float, ...], tolerance: float = 2.5) -> bool:
    return found is not None and all(abs(one - other) <= tolerance for one, other in zip(found, wanted, strict=True))


def test_a_stroke_masks_what_it_covers_and_the_picture_goes_as_it_came(bare, picture):
    assert mask_of(bare) is None
    stroke(bare, (60, 100), (140, 100))
    assert close(mask_of(bare).getbbox(), reached((60, 100), (140, 100)))
    given = handed_over(bare)["picture"]
    with Image.open(picture) as original:
        assert given.tobytes() == original.tobytes()


def test_undo_redo_eraser_invert_clear_and_brush_size(bare):
    stroke(bare, (60, 60), (140, 60))
    stroke(bare, (60, 140), (140, 140))
    bare.keyboard.press("Control+z")
    assert mask_of(bare).getbbox()[3] < 80
    bare.keyboard.press("Control+Shift+z")
    assert mask_of(bare).getbbox()[3] > 140
    bare.keyboard.press("e")
    stroke(bare, (100, 50), (100, 70))
    mask = mask_of(bare)
    assert [mask.getpixel((x, 60)) for x in (70, 100, 130)] == [255, 0, 255]
    bare.keyboard.press("i")
    mask = mask_of(bare)
    assert [mask.getpixel(at) for at in ((70, 60), (100, 60), (5, 180))] == [0, 255, 255]
    bare.click(".canvas-clear")
    assert mask_of(bare) is None
    bare.click(".canvas-undo")
    assert mask_of(bare).getpixel((5, 180)) == 255
    bare.click(".canvas-clear")
    bare.keyboard.press("b")
    for _ in range(5):
        bare.keyboard.press("]")
    stroke(bare, (100, 100), (101, 100))
    left, top, right, bottom = mask_of(bare).getbbox()
    assert min(bottom - top, right - left) > 1.5 * BRUSH


def test_a_soft_brush_leaves_greys(bare):
    bare.locator("label", has_text="Softness").locator("input").fill("80")
    stroke(bare, (60, 100), (140, 100))
    greys = mask_of(bare).crop((100, 0, 101, HEIGHT)).tobytes()
    assert max(greys) > 240
    assert len({level for level in greys if 10 < level < 240}) >= 5


def test_a_stroke_over_a_zoomed_picture_lands_at_the_right_pixels(bare):
    bare.locator(".canvas-surface").hover()
    bare.keyboard.press("+")
    bare.keyboard.press("+")
    stroke(bare, (100, 90), (120, 90), Place(bare, zoom=1.25**2))
    assert close(mask_of(bare).getbbox(), reached((100, 90), (120, 90)))


def test_the_wheel_zooms_and_space_moves(bare):
    place = Place(bare)
    fitted = f"{round(place.scale * 100)}%"
    percent = bare.locator(".canvas-percent")
    expect(percent).to_have_text(fitted)
    bare.locator(".canvas-surface").focus()
    bare.mouse.move(*place.of(128, 96))
    bare.mouse.wheel(0, -200)
    expect(percent).not_to_have_text(fitted)
    bare.keyboard.down(" ")
    bare.mouse.down()
    bare.mouse.move(place.middle[0] + 40, place.middle[1], steps=3)
    bare.mouse.up()
    bare.keyboard.up(" ")
    assert mask_of(bare) is None, "Space moves the picture and draws nothing"
    stroke(bare, (128, 96), (129, 96))
    assert mask_of(bare).getbbox()[2] < 128, "the picture lies further right than before"
    bare.keyboard.press("0")
    expect(percent).to_have_text(fitted)


def test_what_is_drawn_outlives_a_reload_until_the_picture_is_removed(bare):
    stroke(bare, (60, 100), (140, 100))
    before = mask_of(bare).getbbox()
    expect(bare.locator(".canvas")).to_have_attribute("data-kept", "yes")
    bare.reload()
    expect(bare.locator(".canvas")).to_have_attribute("data-state", "drawing")
    assert mask_of(bare).getbbox() == before
    bare.click(".canvas-remove")
    expect(bare.locator(".canvas")).to_have_attribute("data-state", "empty")
    assert handed_over(bare) == {}
    bare.reload()
    assert handed_over(bare) == {}


def test_a_mask_from_a_file_and_one_of_what_is_transparent(bare, tmp_path):
    white_right = Image.new("L", (WIDTH // 2, HEIGHT // 2), 0)
    white_right.paste(255, (WIDTH // 4, 0, WIDTH // 2, HEIGHT // 2))
    white_right.save(tmp_path / "mask.png")
    bare.set_input_files(".canvas-mask-file", tmp_path / "mask.png")
    expect(bare.locator(".canvas-undo")).to_be_enabled()
    half = mask_of(bare).point([255 * (level > 127) for level in range(256)])
    assert close(half.getbbox(), (WIDTH / 2, 0, WIDTH, HEIGHT))
    bare.click(".canvas-menu summary")
    bare.get_by_role("button", name="Mask what is transparent").click()
    assert mask_of(bare).getbbox() == (0, 0, 16, 16)


def test_paint_and_mask_are_layers_of_their_own(bare):
    bare.locator("input[type=color]").fill("#2040c0")
    stroke(bare, (60, 100), (140, 100))
    layers = handed_over(bare)
    assert layers["mask"] is None
    assert layers["paint"].getpixel((100, 100)) == (32, 64, 192, 255)


def test_what_the_server_sends_replaces_the_picture_or_the_mask(bare, picture):
    other = io.BytesIO()
    Image.new("RGB", (64, 32), "red").save(other, "PNG")
    mask = io.BytesIO()
    Image.new("L", (64, 32), 255).save(mask, "PNG")
    for stamp, what, file in (("1", "picture", other), ("2", "mask", mask)):
        url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
        bare.evaluate("(value) => send(value)", {what: {"path": "a.png", "url": url}, "stamp": stamp})
    assert mask_of(bare).getextrema() == (255, 255)
    assert mask_of(bare).size == (64, 32)


@pytest.fixture
def fingers(new_page, picture):
    """A canvas on a telephone, and touch(kind, *points) for its screen."""
    page = new_page(has_touch=True, is_mobile=True)
    show(page, picture)
    session = page.context.new_cdp_session(page)

    def touch(kind: str, *points: tuple[float, float]) -> None:
        touches = [{"x": x, "y": y, "id": index} for index, (x, y) in enumerate(points)]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touches})

    return page, touch


def test_one_finger_draws_and_two_fingers_zoom(fingers):
    page, touch = fingers
    place = Place(page)
    touch("touchStart", place.of(60, 100))
    touch("touchMove", place.of(100, 100))
    touch("touchMove", place.of(140, 100))
    touch("touchEnd")
    before = mask_of(page).getbbox()
    assert close(before, reached((60, 100), (140, 100)), 4)
    percent = page.locator(".canvas-percent").text_content()
    touch("touchStart", place.of(110, 60))
    touch("touchStart", place.of(110, 60), place.of(150, 60))
    touch("touchMove", place.of(80, 60), place.of(180, 60))
    touch("touchEnd")
    expect(page.locator(".canvas-percent")).not_to_have_text(percent)
    assert mask_of(page).getbbox() == before, "the stroke that the first finger began is taken back"
