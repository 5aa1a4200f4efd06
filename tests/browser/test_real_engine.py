"""The page over the real engine and the built-in model, as a newcomer meets it: started by launch.py's own command."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def real_server(tmp_path_factory) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    root = tmp_path_factory.mktemp("real")
    folders = ["--root", str(root), "--models-dir", str(REPOSITORY / "models")]
    with (root / "server.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "webui", "--no-browser", "--port", str(port), *folders],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    assert server.stdout is not None
    said = next((line for line in server.stdout if "Atelier is at" in line), "")
    assert said, (root / "server.log").read_text()
    yield f"http://127.0.0.1:{port}/"
    server.terminate()
    server.wait(60)
    server.stdout.close()


def test_a_picture_forms_and_a_reload_loses_nothing(new_page, real_server: str) -> None:
    page = new_page()
    page.goto(real_server)
    page.wait_for_selector(".engine-status[data-phase=ready]")
    page.fill("#txt2img_prompt textarea", "a red circle on a blue background")
    page.fill("#txt2img_steps input[type=number]", "4")
    page.click("#txt2img_generate")
    page.wait_for_selector("#txt2img_live .live[data-state=finished]", state="attached")
    expect(page.locator("#txt2img_gallery img").first).to_be_visible()
    expect(page.locator("#html_info_txt2img")).to_contain_text("a red circle on a blue background")

    # More pictures than anybody waits for, so that the page sees previews whatever the machine does besides.
    page.fill("#txt2img_prompt textarea", "two green squares")
    page.fill("#txt2img_steps input[type=number]", "40")
    page.fill("#txt2img_batch_count input", "100")
    page.click("#txt2img_generate")
    preview = page.locator("#txt2img_live .live[data-state=running] img.preview")
    expect(preview).to_be_visible()
    early = preview.get_attribute("src")
    expect(preview).not_to_have_attribute("src", early)
    page.reload()
    expect(preview).to_be_visible()
    expect(page.locator("#txt2img_prompt textarea")).to_have_value("two green squares")
    page.wait_for_selector("#txt2img_live .live[data-state=running]:not([data-images='0'])")
    page.click("#txt2img_interrupt")
    page.wait_for_selector("#txt2img_live .live[data-state=cancelled]", state="attached")
    expect(page.locator("#txt2img_gallery img").first).to_be_visible()
    expect(page.locator("#html_info_txt2img")).to_contain_text("two green squares")
