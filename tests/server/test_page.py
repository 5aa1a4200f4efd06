"""The mounted page: signing in, our routes, and files that clients may not name."""

from __future__ import annotations

import asyncio
from pathlib import Path

import gradio
import pytest
from starlette.testclient import TestClient

from webui.api.internal import internal_router
from webui.core.ports import EngineStatus
from webui.server.accounts import Account
from webui.server.page import PageApplication

BASE = "http://127.0.0.1:7860"


def make(pictures: Path, *accounts: Account) -> PageApplication:
    async def build() -> PageApplication:
        return build_page(pictures, *accounts)

    # Outside a running loop gradio makes one for itself and leaves it open.
    return asyncio.run(build())


def build_page(pictures: Path, *accounts: Account) -> PageApplication:
    with gradio.Blocks(analytics_enabled=False) as page:
        source = gradio.File(label="file")
        result = gradio.Textbox(label="content")
        button = gradio.Button("Read")
        button.click(lambda path: Path(path).read_text(), source, result, api_name="read")
    return PageApplication(
        page,
        style={},
        routers=[internal_router(lambda: EngineStatus(phase="warming up"))],
        pictures=pictures,
        accounts=accounts,
        loopback_only=True,
    )


def read_through_the_page(client: TestClient, path: Path) -> str:
    """What the server answers to somebody who says that `path` is a file they uploaded."""
    file = {"path": str(path), "orig_name": path.name, "meta": {"_type": "gradio.FileData"}}
    started = client.post("/gradio_api/call/read", json={"data": [file]})
    return client.get(f"/gradio_api/call/read/{started.json()['event_id']}").text


def test_a_file_that_was_not_uploaded_is_not_read(tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("the secret")

    with TestClient(make(tmp_path / "pictures").asgi, base_url=BASE) as client:
        assert "the secret" not in read_through_the_page(client, secret)
        # The check would pass for the wrong reason if nothing could be read at all.
        uploaded = client.post("/gradio_api/upload", files={"files": ("note.txt", b"a note")}).json()[0]
        assert "a note" in read_through_the_page(client, Path(uploaded))


@pytest.mark.parametrize("name", ["../secret.txt", "..%2fsecret.txt", "link.txt", ""])
def test_only_pictures_are_served(tmp_path, name):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "a.png").write_bytes(b"picture")
    (tmp_path / "secret.txt").write_text("the secret")
    (pictures / "link.txt").symlink_to(tmp_path / "secret.txt")

    with TestClient(make(pictures).asgi, base_url=BASE) as client:
        assert client.get(f"/gradio_api/file={pictures}/a.png").content == b"picture"
        answer = client.get(f"/gradio_api/file={pictures}/{name}")
        assert answer.status_code in (403, 404)


def test_signing_in(tmp_path):
    with TestClient(make(tmp_path, Account("ada", "right")).asgi, base_url=BASE) as client:
        assert client.get("/config").status_code == 401
        assert client.post("/login", data={"username": "ada", "password": "wrong"}).status_code == 400
        assert client.post("/login", data={"username": "ada", "password": "right"}).status_code == 200
        assert client.get("/config").status_code == 200


def test_the_ping_tells_the_engines_phase_and_nothing_about_work(tmp_path):
    with TestClient(make(tmp_path, Account("ada", "right")).asgi, base_url=BASE) as client:
        answer = client.get("/internal/ping")
        assert answer.status_code == 200
        assert answer.json()["engine"] == "warming up"
        assert set(answer.json()) == {"ok", "version", "engine"}


def test_gradios_own_openings_are_shut(tmp_path):
    with TestClient(make(tmp_path).asgi, base_url=BASE) as client:
        assert client.get("/monitoring").status_code == 403
        assert client.get("/docs").status_code == 404
        assert client.get("/openapi.json").status_code == 404
