"""`python -m webui` as a process under the launcher's supervision: it serves, is started again, and stops in order."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 120

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds the child through /proc")


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def get(port: int, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def wait_for_page(port: int, launcher: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end and launcher.poll() is None:
        try:
            status, body = get(port, "/internal/ping")
        except ConnectionError:
            time.sleep(0.1)
            continue
        assert status == 200
        assert json.loads(body)["ok"] is True
        return
    pytest.fail(f"the page did not come up:\n{log.read_text()}")


def server_of(launcher: subprocess.Popen[bytes]) -> int:
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    assert len(children) == 1
    return int(children[0])


@pytest.fixture
def launched(tmp_path: Path):
    """A launcher that supervises a server on folders of its own: (process, port, log)."""
    (tmp_path / "models").mkdir()
    port = free_port()
    command = [sys.executable, "-m", "webui", "--root", str(tmp_path), "--port", str(port), "--no-browser"]
    program = f"import launch, sys; sys.exit(launch.Supervisor({command!r}).run())"
    log = tmp_path / "log"
    with log.open("wb") as output:
        launcher = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=output, stderr=output)
        yield launcher, port, log
        launcher.kill()
        launcher.wait()


def test_a_killed_server_comes_back_and_a_stopped_one_stays_away(launched):
    launcher, port, log = launched
    wait_for_page(port, launcher, log)
    first = server_of(launcher)
    assert get(port, "/")[0] == 200

    subprocess.run(["kill", "-KILL", str(first)], check=True)
    end = time.monotonic() + PATIENCE_S
    while "died of SIGKILL; starting it again (1 of 5)" not in log.read_text():
        assert time.monotonic() < end
        time.sleep(0.05)
    wait_for_page(port, launcher, log)
    assert server_of(launcher) != first

    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(PATIENCE_S) == 0
    assert "The server has stopped." in log.read_text()
    assert "did not stop within" not in log.read_text()
    with pytest.raises(ConnectionError):
        get(port, "/")
