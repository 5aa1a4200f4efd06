"""How soon the page can be used in a browser, beside a bare gradio page in turn.

    .venv/bin/python benchmarks/page.py [--rounds 5] [--json]

Both are served as in startup.py, which measures what comes before: Atelier without a checkpoint, torch behind it.
Each round opens both in a browser of their own memory, from asking for `/` until a text field is there and the browser
has nothing left to do. Times are in seconds, the medians are compared; so is what was sent, in kB. Needs playwright and
a chromium, as the browser tests do.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright
from startup import BARE, PATIENCE_S, ROOT, answers, free_port

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
FIELDS = {"atelier": "#txt2img_prompt textarea", "gradio": "textarea"}

AT_REST = "() => new Promise(done => requestIdleCallback(done))"
SENT = """() => [...performance.getEntriesByType('navigation'), ...performance.getEntriesByType('resource')]
  .reduce((sum, entry) => sum + entry.transferSize, 0)"""


@contextmanager
def served(command: list[str], port: int, folder: Path) -> Iterator[str]:
    """The address of the page that `command` serves at `port`; raises RuntimeError where none comes."""
    environment = {**os.environ, "GRADIO_ANALYTICS_ENABLED": "False", "PYTHONPATH": str(ROOT)}
    with (folder / "server.log").open("ab") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=folder)
        try:
            end = time.perf_counter() + PATIENCE_S
            while not answers(port):
                if server.poll() is not None or time.perf_counter() > end:
                    raise RuntimeError(f"no page came: {(folder / 'server.log').read_text(errors='replace')[-2000:]}")
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}/"
        finally:
            server.terminate()
            server.wait()


def opened(browser: Browser, address: str, field: str) -> tuple[float, float]:
    """Seconds until the page at `address` shows `field` and is at rest, and the kB that were sent for it."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(PATIENCE_S * 1000)
    page = context.new_page()
    begin = time.perf_counter()
    page.goto(address, wait_until="commit")
    page.wait_for_selector(field)
    page.evaluate(AT_REST)
    spent = time.perf_counter() - begin
    sent = float(page.evaluate(SENT)) / 1000
    context.close()
    return spent, sent


def measure(rounds: int) -> dict[str, list[tuple[float, float]]]:
    """(seconds, kB) for each page, once a round, after one that is not counted."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as running:
        folder = Path(name)
        (folder / "models").mkdir()
        ports = {page: free_port() for page in FIELDS}
        atelier = [sys.executable, "-m", "webui", "--root", name, "--no-browser", "--port", str(ports["atelier"])]
        commands = {"atelier": atelier, "gradio": [sys.executable, "-c", BARE, str(ports["gradio"])]}
        addresses = {
            page: running.enter_context(served(command, ports[page], folder)) for page, command in commands.items()
        }
        browser = running.enter_context(sync_playwright()).chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        running.callback(browser.close)
        seen = [{page: opened(browser, addresses[page], FIELDS[page]) for page in FIELDS} for _ in range(rounds + 1)]
    return {page: [row[page] for row in seen[1:]] for page in FIELDS}


def main() -> None:
    """Prints a table, or with --json one last line of JSON."""
    parser = argparse.ArgumentParser(description="The page in a browser, beside a bare gradio page.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    rows = measure(chosen.rounds)
    print("round   atelier s   gradio s")
    for number, (atelier, gradio) in enumerate(zip(rows["atelier"], rows["gradio"], strict=True), start=1):
        print(f"{number:5}   {atelier[0]:9.2f}   {gradio[0]:8.2f}")
    usable_s = {page: statistics.median(seconds for seconds, _ in row) for page, row in rows.items()}
    sent_kb = {page: statistics.median(sent for _, sent in row) for page, row in rows.items()}
    ratio = usable_s["atelier"] / usable_s["gradio"]
    print(f"median  {usable_s['atelier']:9.2f}   {usable_s['gradio']:8.2f}   ratio {ratio:.2f}")
    print(f"sent kB {sent_kb['atelier']:9.0f}   {sent_kb['gradio']:8.0f}")
    if chosen.json:
        result = {"ratio": ratio, "usable_s": usable_s["atelier"], "gradio_s": usable_s["gradio"]}
        sent = {"sent_kb": sent_kb["atelier"], "gradio_sent_kb": sent_kb["gradio"]}
        print(json.dumps({name: round(value, 3) for name, value in {**result, **sent}.items()}))


if __name__ == "__main__":
    main()
