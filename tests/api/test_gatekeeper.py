"""What another site's script may not do through the browser of the person who runs the server."""

from __future__ import annotations

import asyncio
import json

import pytest

from webui.api import gatekeeper
from webui.api.gatekeeper import Gatekeeper, names_an_address, names_loopback, refusal

HOST = {"host": "127.0.0.1:7860"}
JOIN = "/gradio_api/queue/join"


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost", "localhost:1", "[::1]:7860", "127.8.8.8"])
def test_names_of_loopback(host):
    assert names_loopback(host)


@pytest.mark.parametrize("host", ["evil.com", "127.0.0.1.evil.com", "0.0.0.0", "localhost.evil.com", "", "["])
def test_other_names_are_not_loopback(host):
    assert not names_loopback(host)


def test_a_rebound_name_is_refused_even_for_reading():
    assert "evil.com" in str(refusal("GET", "/", {"host": "evil.com"}, loopback_only=True))
    assert refusal("GET", "/", {"host": "studio.lan"}, loopback_only=False) is None


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.com"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:8000"},
        {"origin": "http://127.0.0.1"},
        {"origin": "http://["},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
@pytest.mark.parametrize("loopback_only", [True, False])
def test_changes_come_from_the_page_itself(headers, loopback_only):
    assert refusal("POST", JOIN, {**HOST, **headers}, loopback_only=loopback_only) is not None


@pytest.mark.parametrize(
    ("host", "headers"),
    [
        ("127.0.0.1:7860", {"origin": "http://127.0.0.1:7860", "sec-fetch-site": "same-origin"}),
        # The tunnel speaks https outside and http here.
        ("abc.gradio.live", {"origin": "https://ABC.gradio.live"}),
        # A program that is no browser carries nobody's cookies.
        ("127.0.0.1:7860", {}),
    ],
)
def test_the_page_and_programs_may_change_things(host, headers):
    assert refusal("POST", JOIN, {"host": host, **headers}, loopback_only=False) is None


def test_another_site_may_link_here_but_not_read_from_here():
    cross = {**HOST, "sec-fetch-site": "cross-site"}
    assert refusal("GET", "/", {**cross, "sec-fetch-mode": "navigate"}, loopback_only=True) is None
    assert refusal("GET", "/gradio_api/file=x.png", {**cross, "sec-fetch-mode": "no-cors"}, loopback_only=True)


@pytest.mark.parametrize(
    "path", ["/gradio_api/proxy=http://10.0.0.1/", "/gradio_api/file=http://10.0.0.1/", "/x/file=HTTPS://a/"]
)
def test_the_server_fetches_nothing(path):
    assert refusal("GET", path, HOST, loopback_only=True) is not None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"data": [{"path": "http://a/b.png"}]}, True),
        ({"data": [{"background": {"path": "FTP://a"}}]}, True),
        ({"data": ["see http://a", {"path": "/data/page-cache/a.png", "url": "http://127.0.0.1/x"}]}, False),
        ("http://a", False),
    ],
)
def test_pictures_by_address_are_seen(value, expected):
    assert names_an_address(value) is expected


def _call(body: bytes, *, path: str = JOIN, pieces: int = 1) -> tuple[int, dict[bytes, bytes], bytes]:
    """Sends a POST through the gatekeeper to an application that echoes; returns (status, headers, body)."""

    async def echo(scope, receive, send):
        received = b""
        while True:
            message = await receive()
            received += message["body"]
            if not message["more_body"]:
                break
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": received})

    size = -(-len(body) // pieces) or 1
    messages = [
        {"type": "http.request", "body": body[at : at + size], "more_body": at + size < len(body)}
        for at in range(0, max(len(body), 1), size)
    ]
    sent = []

    async def receive():
        return messages.pop(0)

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "headers": [(b"host", b"127.0.0.1:7860")]}
    asyncio.run(Gatekeeper(echo, loopback_only=True)(scope, receive, send))
    return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"]


def test_an_allowed_body_arrives_whole():
    body = json.dumps({"data": ["x" * 1000]}).encode()

    status, headers, echoed = _call(body, pieces=7)

    assert (status, echoed) == (200, body)
    assert headers[b"x-content-type-options"] == b"nosniff"


def test_a_picture_by_address_is_refused_with_a_sentence():
    status, _, text = _call(json.dumps({"data": [{"path": "http://10.0.0.1/"}]}).encode())

    assert status == 403
    assert b"not by address" in text


def test_a_body_that_is_not_json_is_left_to_gradio():
    assert _call(b"{ no json")[0] == 200


def test_a_body_without_end_is_refused(monkeypatch):
    monkeypatch.setattr(gatekeeper, "MAX_JSON_BYTES", 100)

    assert _call(b"x" * 300, pieces=3)[0] == 413
    # Uploads have a limit of their own, in gradio.
    assert _call(b"x" * 300, path="/gradio_api/upload", pieces=3)[0] == 200
