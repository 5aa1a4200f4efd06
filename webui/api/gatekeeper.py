"""Refuses what another web site's script could send to this server through the browser of the person who runs it.

A server on loopback is reached by every page that its owner's browser opens. Three rules, checked before gradio sees a
request (CVE-2024-1727, CVE-2024-47084 and CVE-2024-4325 are what happens without them):

- a server that only listens on loopback answers only to loopback's names, which stops DNS rebinding;
- a request that changes something, or that reads on behalf of a script, comes from the page itself;
- nobody makes the server fetch an address: gradio's proxy routes are closed and pictures given by URL are refused.

It must not decide who somebody is: signing in is gradio's, managing extensions is `webui.extensions.access`'s.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from webui.core.loopback import authority_of, names_loopback

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
GRADIO_API = "/gradio_api/"
UPLOAD = "/gradio_api/upload"
MAX_JSON_BYTES = 32 * 2**20  # pictures travel as uploads; what is left is form values
RESPONSE_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
    "Referrer-Policy": "same-origin",
}


def refusal(method: str, path: str, headers: Mapping[str, str], *, loopback_only: bool) -> str | None:
    """Why a request is refused, as a sentence, or None; `headers` has lower-case names."""
    host = headers.get("host", "")
    if loopback_only and not names_loopback(host):
        return (
            f"This server answers only to this machine's own names, not to {host!r}; start it with --listen to open it."
        )
    if path.startswith((f"{GRADIO_API}proxy=", f"{GRADIO_API}file=http")) or "://" in path:
        return "This server fetches nothing from other addresses."
    origin = headers.get("origin")
    site = headers.get("sec-fetch-site", "none")
    if method not in SAFE_METHODS:
        if origin is not None and authority_of(origin) != host.lower():
            return f"The request comes from {origin!r}, which is another site; use Atelier's own page."
        if origin is None and site not in {"same-origin", "none"}:
            return "The request comes from another site; use Atelier's own page."
    # Following a link here is fine; a script or a picture tag of another site reading from here is not.
    elif site == "cross-site" and headers.get("sec-fetch-mode") != "navigate":
        return "Another site may not read from this server."
    return None


def names_an_address(value: Any) -> bool:
    """Whether a JSON value holds a file that is given by URL, which gradio would fetch."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            path = item.get("path")
            if isinstance(path, str) and "://" in path:
                return True
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)
    return False


class Gatekeeper:
    """ASGI middleware around the whole server; holds no state."""

    def __init__(self, app: ASGIApp, *, loopback_only: bool) -> None:
        self.app = app
        self.loopback_only = loopback_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, or answers it with 403 or 413 and a sentence."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        method, path = scope["method"], scope["path"]
        reason = refusal(method, path, headers, loopback_only=self.loopback_only)
        if reason is not None:
            await PlainTextResponse(reason, status_code=403)(scope, receive, send)
            return
        if method == "POST" and path.startswith(GRADIO_API) and not path.startswith(UPLOAD):
            body = await _read(receive)
            if body is None:
                await PlainTextResponse("The request is too large.", status_code=413)(scope, receive, send)
                return
            if _fetches(body):
                sentence = "Pictures are taken as files, not by address; save the picture and drop the file."
                await PlainTextResponse(sentence, status_code=403)(scope, receive, send)
                return
            receive = _replay(body, receive)
        await self.app(scope, receive, _with_headers(send))


def _fetches(body: bytes) -> bool:
    try:
        return names_an_address(json.loads(body)) if body else False
    except ValueError:  # not JSON; gradio says so better
        return False


async def _read(receive: Receive) -> bytes | None:
    """The whole body, or None if it is larger than `MAX_JSON_BYTES`."""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return b"".join(parts)
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > MAX_JSON_BYTES:
            return None
        if not message.get("more_body", False):
            return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return pending.pop() if pending else await receive()

    return again


def _with_headers(send: Send) -> Send:
    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in RESPONSE_HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return wrapped
