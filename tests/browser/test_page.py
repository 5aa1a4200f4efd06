"""The page in a real browser: every tab makes its picture, and a reload loses nothing."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.request
from pathlib import Path

import pytest
from playwright.sync_api import expect

PATIENCE_S = 90
SAMPLE_EXTENSION = Path(__file__).parents[1] / "extensions" / "sample_extension"


def finished(page, tab: str, state: str = "finished"):
    page.wait_for_selector(f"#{tab}_live .live[data-state={state}]", state="attached")


def generate(page, prompt: str) -> None:
    page.fill("#txt2img_prompt textarea", prompt)
    page.click("#txt2img_generate")


def open_tab(page, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


def test_a_prompt_becomes_a_picture_with_previews_on_the_way(page, hold):
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    hold.write_text("4")
    page.fill("#txt2img_steps input[type=number]", "12")
    page.fill("#txt2img_prompt textarea", "a <b>red</b> circle")
    page.keyboard.press("Control+Enter")
    preview = page.locator("#txt2img_live .live[data-state=running] img.preview")
    expect(preview).to_have_attribute("alt", "The forming picture, step 3")
    early = preview.get_attribute("src")
    hold.write_text("9")
    expect(preview).to_have_attribute("alt", "The forming picture, step 8")
    expect(preview).not_to_have_attribute("src", early)
    hold.unlink()
    finished(page, "txt2img")
    picture = page.locator("#txt2img_gallery img").first
    expect(picture).to_be_visible()
    assert picture.bounding_box()["width"] >= 300, "a 128-pixel picture must not be shown tiny"
    expect(page.locator("#html_info_txt2img")).to_contain_text("a <b>red</b> circle")
    expect(page.locator("#html_info_txt2img")).to_contain_text("Steps")
    strangers = [url for url in asked if not re.match(r"(http://127\.0\.0\.1:|data:|blob:)", url)]
    assert not strangers


def test_the_page_carries_nothing_that_nobody_sees(page_server):
    def fetched(path: str) -> str:
        with urllib.request.urlopen(page_server.address + path, timeout=PATIENCE_S) as answer:
            return answer.read().decode()

    events = json.loads(fetched("config"))["dependencies"]
    # Gradio's page would tell hidden progress to every output of every event, many times for each preview.
    told = [
        event["api_name"] for event in events if event["show_progress"] == "hidden" and event["show_progress_on"] != []
    ]
    assert not told
    described = re.search(r"window\.gradio_api_info = (.*?);</script>", fetched(""))
    assert described is not None
    assert json.loads(described[1]) == {"named_endpoints": {}, "unnamed_endpoints": {}}


def test_a_reload_in_the_middle_gets_its_picture_and_its_form(page, hold):
    page.fill("#txt2img_steps input[type=number]", "10")
    generate(page, "a picture that takes a while")
    page.wait_for_selector("#txt2img_live img.preview")
    page.reload()
    page.wait_for_selector("#txt2img_live .live[data-state=running] img.preview")
    expect(page.locator("#txt2img_prompt textarea")).to_have_value("a picture that takes a while")
    expect(page.locator("#txt2img_steps input[type=number]")).to_have_value("10")
    hold.unlink()
    finished(page, "txt2img")
    expect(page.locator("#html_info_txt2img")).to_contain_text("a picture that takes a while")
    page.reload()
    expect(page.locator("#txt2img_gallery img").first).to_be_visible()


def test_interrupt_stops_a_job_and_a_second_page_sees_the_queue(page, hold, new_page, page_server):
    generate(page, "a very long job")
    page.wait_for_selector("#txt2img_live .live[data-state=running]")
    other = new_page()
    other.goto(page_server.address)
    open_tab(other, "Queue")
    expect(other.locator("#queue_table")).to_contain_text("a very long job")
    page.click("#txt2img_interrupt")
    hold.unlink()
    finished(page, "txt2img", "cancelled")
    expect(other.locator("#queue_table")).to_contain_text("Nothing is running")


def test_a_picture_goes_through_img2img_inpaint_and_upscale(page):
    page.fill("#txt2img_steps input[type=number]", "6")
    generate(page, "to be passed on")
    finished(page, "txt2img")

    page.click("#txt2img_send_to_img2img")
    expect(page.locator("#img2img_prompt textarea")).to_have_value("to be passed on")
    expect(page.locator("#img2img_image .canvas")).to_have_attribute("data-state", "drawing")
    page.click("#img2img_generate")
    finished(page, "img2img")
    expect(page.locator("#html_info_img2img")).to_contain_text("Denoising strength")

    page.click("#img2img_send_to_inpaint")
    draw_mask(page)
    page.click("#inpaint_generate")
    finished(page, "inpaint")
    expect(page.locator("#html_info_inpaint")).to_contain_text("Masked content")

    page.click("#inpaint_send_to_upscale")
    expect(page.locator("#upscale_image img")).to_be_visible()
    page.click("#upscale_generate")
    finished(page, "upscale")
    expect(page.locator("#upscale_gallery img").first).to_be_visible()


def draw_mask(page) -> None:
    expect(page.locator("#inpaint_image .canvas")).to_have_attribute("data-state", "drawing")
    surface = page.locator("#inpaint_image .canvas-surface")
    surface.scroll_into_view_if_needed()
    box = surface.bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0] + 30, middle[1] + 20, steps=5)
    page.mouse.up()


def test_inpaint_without_a_mask_says_so(page):
    open_tab(page, "Inpaint")
    page.click("#inpaint_generate")
    expect(page.locator(".toast-body")).to_contain_text("There is no picture to inpaint")


def test_png_info_reads_a_picture_and_sends_its_parameters(page, page_server):
    page.fill("#txt2img_steps input[type=number]", "5")
    page.fill("#txt2img_seed input", "4242")
    generate(page, "known by its file")
    finished(page, "txt2img")
    newest = sorted(page_server.root.glob("outputs/txt2img/*/*-4242.png"))[-1]
    page.fill("#txt2img_prompt textarea", "something else")

    open_tab(page, "PNG info")
    page.set_input_files("#pnginfo_image input[type=file]", newest)
    expect(page.locator("#html_info_pnginfo")).to_contain_text("known by its file")
    page.click("#pnginfo_send_to_txt2img")
    expect(page.locator("#txt2img_prompt textarea")).to_have_value("known by its file")
    expect(page.locator("#txt2img_steps input[type=number]")).to_have_value("5")


def test_png_info_names_a_file_that_is_no_picture(page, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    open_tab(page, "PNG info")
    page.set_input_files("#pnginfo_image input[type=file]", broken)
    expect(page.locator(".toast-body")).to_contain_text("broken.png")


def test_a_bad_width_is_told_in_a_sentence_and_costs_nothing(page):
    page.fill("#txt2img_width input", "130")
    generate(page, "still here")
    expect(page.locator(".toast-body")).to_contain_text("Width is 130, not a multiple of 8")
    expect(page.locator("#txt2img_prompt textarea")).to_have_value("still here")
    expect(page.locator("#txt2img_width input")).to_have_value("130")


def test_another_checkpoint_brings_its_size_and_the_swap_button_turns_it(page):
    page.click("#setting_sd_model_checkpoint input")
    page.get_by_role("option", name="drawn-large").click()
    expect(page.locator("#txt2img_width input")).to_have_value("256")
    page.click("#txt2img_res_switch_btn")
    expect(page.locator("#txt2img_height input")).to_have_value("256")
    expect(page.locator("#txt2img_width input")).to_have_value("192")


def test_parameters_pasted_into_the_prompt_are_read(page):
    page.fill("#txt2img_prompt textarea", "a star\nSteps: 7, Sampler: Euler a, CFG scale: 3, Seed: 9, Size: 64x96")
    page.click("#txt2img_paste")
    expect(page.locator("#txt2img_prompt textarea")).to_have_value("a star")
    expect(page.locator("#txt2img_height input")).to_have_value("96")
    expect(page.locator("#txt2img_seed input")).to_have_value("9")
    expect(page.locator("#txt2img_sampling input")).to_have_value("Euler a")


@pytest.fixture
def extension_repository(tmp_path: Path) -> Path:
    """The sample extension as a git repository on this machine."""
    folder = tmp_path / "sample-extension"
    folder.mkdir()
    for file in SAMPLE_EXTENSION.glob("*.py"):
        (folder / file.name).write_bytes(file.read_bytes())
    author = ["-c", "user.name=Test", "-c", "user.email=test@example.org"]
    for command in (["init", "-q"], ["add", "."], [*author, "commit", "-q", "-m", "sample"]):
        subprocess.run(["git", "-C", str(folder), *command], check=True)
    return folder


def test_an_extension_is_installed_switched_on_and_adds_its_tab(new_page, serve, extension_repository):
    first = serve()
    page = new_page()
    page.goto(first.address)
    open_tab(page, "Extensions")
    page.fill("#extensions_source input, #extensions_source textarea", str(extension_repository))
    page.click("#extensions_install")
    switch = page.get_by_label("sample-extension enabled")
    expect(switch).to_be_visible()
    expect(switch).not_to_be_checked()
    switch.check()
    expect(page.locator("#extension_sample-extension .extension")).to_have_attribute("data-state", "on")

    first.stop()
    second = serve(root=first.root)
    page.goto(second.address)
    open_tab(page, "Vignette")
    expect(page.locator("#vignette_apply")).to_be_visible()


def test_pasted_parameters_reach_the_checkpoint_and_the_section_more(page, tmp_path):
    page.fill(
        "#txt2img_prompt textarea",
        "a star\nSteps: 7, Sampler: Euler a, CFG scale: 7, Seed: 9, Size: 128x128, Model: drawn-large, Clip skip: 2, "
        "Eta: 0.5, VAE: gone.pt",
    )
    page.click("#txt2img_paste")
    changed = page.locator("#txt2img_more_changed")
    expect(changed).to_contain_text("Clip skip 2")
    expect(changed).to_contain_text("Eta 0.5")
    expect(changed).to_contain_text("Noise drawn on GPU")
    expect(changed).not_to_contain_text("sigma")
    expect(page.locator("#setting_sd_model_checkpoint input")).to_have_value("drawn-large")
    expect(page.get_by_text("gone.pt")).to_be_visible()
    page.click("#txt2img_more .label-wrap")
    page.screenshot(path=tmp_path / "more.png", full_page=True)
    page.reload()
    expect(page.locator("#setting_sd_model_checkpoint input")).to_have_value("drawn-large")
    expect(changed).to_contain_text("Clip skip 2")
    page.click("#txt2img_generate")
    finished(page, "txt2img")
    expect(page.locator("#html_info_txt2img")).to_contain_text("Clip skip")
    page.click("#txt2img_more_reset")
    expect(changed).not_to_contain_text("Clip skip")
