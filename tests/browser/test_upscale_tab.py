"""The upscale tab: several pictures, a folder gone on with, the slider before and after, what its menus hold."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import expect


@pytest.fixture
def upscale(page):
    """The page with the tab open."""
    page.get_by_role("tab", name="Upscale", exact=True).click()
    page.fill("#upscale_scale input[type=number]", "2")
    return page


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, name in enumerate(("a.png", "b.jpg", "c.png")):
        Image.new("RGB", (64, 48), (60 + 60 * number, 90, 140)).save(folder / name)
    return folder


def finished(page) -> None:
    page.wait_for_selector("#upscale_live .live[data-state=finished]", state="attached")


def test_the_slider_is_dragged_between_before_and_after(upscale, pictures):
    upscale.set_input_files("#upscale_image input[type=file]", pictures / "a.png")
    expect(upscale.locator("#upscale_image img")).to_be_visible()
    upscale.click("#upscale_generate")
    finished(upscale)
    slider = upscale.locator("#upscale_gallery")
    expect(slider.locator("img")).to_have_count(2)
    handle = slider.locator(".outer")
    handle.hover()  # waits until the handle has come to rest
    before = handle.bounding_box()
    upscale.mouse.down()
    upscale.mouse.move(before["x"] - 120, before["y"] + before["height"] / 2, steps=6)
    upscale.mouse.up()
    left_of = "([handle, place]) => handle.getBoundingClientRect().x < place"
    upscale.wait_for_function(left_of, arg=[handle.element_handle(), before["x"] - 60])


def test_several_pictures_are_made_and_each_can_be_looked_at(upscale, pictures):
    upscale.get_by_label("Several").check()
    expect(upscale.locator("#upscale_image")).to_be_hidden()
    upscale.set_input_files("#upscale_files input[type=file]", [pictures / "a.png", pictures / "b.jpg"])
    expect(upscale.locator("#upscale_files")).to_contain_text("jpg")
    upscale.click("#upscale_generate")
    made = upscale.locator("#upscale_several img")
    expect(made).to_have_count(2)
    finished(upscale)
    after = upscale.locator("#upscale_gallery img").first
    shown = after.get_attribute("src")
    made.first.click()
    expect(after).not_to_have_attribute("src", shown or "")


def test_a_folder_is_gone_on_with(upscale, pictures, tmp_path):
    results = tmp_path / "results"
    (pictures / "d.png").write_bytes(b"no picture")
    upscale.get_by_label("Folder", exact=True).check()
    expect(upscale.locator("#upscale_generate")).to_be_hidden()
    upscale.click("#upscale_batch_start")
    expect(upscale.locator(".toast-body")).to_contain_text("The folder of pictures is empty")
    upscale.fill("#upscale_batch_input_dir :is(input, textarea)", str(pictures))
    upscale.fill("#upscale_batch_output_dir :is(input, textarea)", str(results))
    upscale.click("#upscale_batch_start")
    progress = upscale.locator("#upscale_batch_progress")
    expect(progress).to_contain_text("3 of 4, 1 failed")
    expect(progress).to_contain_text("d.png")
    assert sorted(path.name for path in results.iterdir()) == ["a.png", "b.png", "c.png"]
    (results / "b.png").unlink()
    (pictures / "d.png").unlink()
    upscale.click("#upscale_batch_start")
    expect(progress).to_contain_text("1 of 3, 2 skipped")
    with Image.open(results / "b.png") as made:
        assert made.size == (128, 96)


def test_what_is_fetched_is_in_the_menu(upscale, page_server):
    package = page_server.root / "package"
    package.touch()
    upscale.click("#upscale_get_model")
    expect(upscale.locator("#upscale_upscaler_1 input")).to_have_value("realesrgan-x4plus")
    expect(upscale.locator("#upscale_get_model")).to_be_hidden()
    package.unlink()
    next((page_server.root / "models").rglob("realesrgan-x4plus.*")).unlink()
    upscale.reload()
    expect(upscale.locator("#upscale_get_model")).to_be_visible()
    expect(upscale.locator("#upscale_upscaler_1 input")).to_have_value("Lanczos")


def test_only_what_can_be_used_is_shown(upscale):
    expect(upscale.locator("#upscale_face_restorer")).to_be_hidden()
    expect(upscale.locator("#upscale_diffusion")).to_be_hidden()
    upscale.click("#upscale_upscaler_1 input")
    upscale.get_by_role("option", name="drawn-large").click()
    expect(upscale.locator("#upscale_diffusion_prompt")).to_be_visible()
