"""How soon the page answers, beside a bare gradio page in turn, and how soon the first picture is there.

    .venv/bin/python benchmarks/startup.py [--rounds 5] [--json]

Each round starts both as fresh processes on a free port and asks for `/` until a byte comes. Atelier runs on folders of
its own without a checkpoint; torch loads behind the page and is stopped with it. Times are from the process's start, in
seconds; the medians are compared, because the first round also fills the disk cache. The first picture is that of
`python -m webui generate` with the built-in model, from the process's start to the file, 20 steps.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PATIENCE_S = 120.0

BARE = """
import sys, gradio
with gradio.Blocks(analytics_enabled=False) as page:
    gradio.Textbox()
page.launch(server_port=int(sys.argv[1]), quiet=True)
"""


def free_port() -> int:
    """A port that nobody listens at just now."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def first_byte_s(command: list[str], port: int, folder: Path) -> float:
    """Seconds from starting `command` to the first byte of the page at `port`; raises RuntimeError if it ends first."""
    environment = {**os.environ, "GRADIO_ANALYTICS_ENABLED": "False", "PYTHONPATH": str(ROOT)}
    with (folder / "server.log").open("wb") as log:
        begin = time.perf_counter()
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=folder)
        try:
            while time.perf_counter() - begin < PATIENCE_S:
                if server.poll() is not None:
                    break
                if answers(port):
                    return time.perf_counter() - begin
                time.sleep(0.01)
        finally:
            server.send_signal(signal.SIGKILL)
            server.wait()
    raise RuntimeError(f"no page came: {(folder / 'server.log').read_text(errors='replace')[-2000:]}")


def answers(port: int) -> bool:
    """Whether the page at `port` sends a first byte."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    try:
        connection.request("GET", "/")
        return len(connection.getresponse().read(1)) == 1
    except ConnectionError:
        return False
    finally:
        connection.close()


def first_picture_s(folder: Path) -> float:
    """Seconds from starting a process that makes one picture to its end; raises CalledProcessError if it fails."""
    out = folder / "picture.png"
    begin = time.perf_counter()
    command = [sys.executable, "-m", "webui", "generate", "--root", str(folder), "--models-dir", str(ROOT / "models")]
    subprocess.run(
        [*command, "--prompt", "a red circle on a blue background", "--seed", "1", "--out", str(out)],
        check=True,
        capture_output=True,
        cwd=ROOT,
    )
    spent = time.perf_counter() - begin
    out.unlink()
    return spent


def measure(rounds: int) -> tuple[list[float], list[float], list[float]]:
    """(Atelier's, gradio's) first bytes and the first pictures in seconds, one of each a round."""
    page: list[float] = []
    bare: list[float] = []
    picture: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "models").mkdir()
        for _ in range(rounds):
            port = free_port()
            atelier = [sys.executable, "-m", "webui", "--root", name, "--no-browser", "--port", str(port)]
            page.append(first_byte_s(atelier, port, folder))
            port = free_port()
            bare.append(first_byte_s([sys.executable, "-c", BARE, str(port)], port, folder))
            picture.append(first_picture_s(folder))
    return page, bare, picture


def main() -> None:
    """Prints a table, or with --json one last line of JSON."""
    parser = argparse.ArgumentParser(description="First byte of the page, beside a bare gradio page; first picture.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    page, bare, picture = measure(chosen.rounds)
    print("round   atelier s   gradio s   first picture s")
    for number, row in enumerate(zip(page, bare, picture, strict=True), start=1):
        print(f"{number:5}   {row[0]:9.2f}   {row[1]:8.2f}   {row[2]:15.2f}")
    page_s, gradio_s, picture_s = (statistics.median(seconds) for seconds in (page, bare, picture))
    print(f"median  {page_s:9.2f}   {gradio_s:8.2f}   {picture_s:15.2f}   ratio {page_s / gradio_s:.2f}")
    if chosen.json:
        result = {"ratio": page_s / gradio_s, "page_s": page_s, "gradio_s": gradio_s, "first_picture_s": picture_s}
        print(json.dumps({name: round(value, 3) for name, value in result.items()}))


if __name__ == "__main__":
    main()
