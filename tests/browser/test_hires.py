"""Hires fix from its section to the picture, and a finished picture upscaled by itself."""

from __future__ import annotations

from PIL import Image
from playwright.sync_api import expect


def finished(page):
    page.wait_for_selector("#txt2img_live .live[data-state=finished]", state="attached")


def newest(page_server, size):
    """The newest picture's size, once there is one of `size`."""
    files = sorted(page_server.root.glob("outputs/txt2img/*/*.png"))
    with Image.open(files[-1]) as picture:
        assert picture.size == size
    return files[-1]


def test_the_section_opens_says_the_size_and_makes_the_larger_picture(page, page_server):
    page.fill("#txt2img_steps input[type=number]", "4")
    line = page.locator("#txt2img_hr_finalres")
    expect(page.locator("#txt2img_hr_scale")).to_be_hidden()
    page.get_by_label("Hires fix").check()
    expect(line).to_have_text("128x128 → 256x256")
    page.fill("#txt2img_hr_scale input[type=number]", "1.5")
    expect(line).to_have_text("128x128 → 192x192")
    page.fill("#txt2img_hr_resize_x input", "320")
    expect(line).to_have_text("128x128 → 320x320")
    page.fill("#txt2img_prompt textarea", "in two passes")
    page.click("#txt2img_generate")
    finished(page)
    expect(page.locator("#html_info_txt2img")).to_contain_text("Hires resize")
    newest(page_server, (320, 320))
    page.reload()
    expect(page.get_by_label("Hires fix")).to_be_checked()
    expect(line).to_have_text("128x128 → 320x320")


def test_a_picture_is_upscaled_with_its_own_seed(page, page_server):
    page.fill("#txt2img_steps input[type=number]", "4")
    page.fill("#txt2img_seed input", "777")
    page.fill("#txt2img_prompt textarea", "to be larger")
    page.click("#txt2img_generate")
    finished(page)
    page.fill("#txt2img_seed input", "1")
    page.fill("#txt2img_prompt textarea", "another prompt")
    page.click("#txt2img_upscale")
    expect(page.locator("#html_info_txt2img")).to_contain_text("Hires upscale")
    expect(page.locator("#html_info_txt2img")).to_contain_text("to be larger")
    assert newest(page_server, (256, 256)).name.endswith("-777.png")
