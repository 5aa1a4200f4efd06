"""The public link opens or is given up with one sentence; neither hangs nor raises anything else."""

from __future__ import annotations

import threading

import httpx
import pytest
from gradio import tunneling

from webui.core.errors import ResourceError
from webui.server.tunnel import close_links, gradio_tunnel, open_link


def test_the_link_is_what_the_tunnel_says():
    asked = []

    def opener(host: str, port: int) -> str:
        asked.append((host, port))
        return "https://abc.gradio.live"

    assert open_link(7861, opener=opener) == "https://abc.gradio.live"
    assert asked == [("127.0.0.1", 7861)]


def test_a_failure_is_one_sentence():
    def opener(host: str, port: int) -> str:
        raise RuntimeError("Could not reach the relay.\nlog line\nlog line")

    with pytest.raises(ResourceError) as raised:
        open_link(7861, opener=opener)
    assert str(raised.value) == (
        "The public link could not be opened (Could not reach the relay); the page stays up on this machine."
    )


def test_a_tunnel_that_says_nothing_is_given_up():
    released = threading.Event()

    def opener(host: str, port: int) -> str:
        released.wait()
        return ""

    with pytest.raises(ResourceError, match=r"no answer within 0\.05 seconds"):
        open_link(7861, opener=opener, timeout_s=0.05)
    released.set()


def test_open_links_are_closed(monkeypatch):
    killed = []

    class FakeTunnel:
        def kill(self) -> None:
            killed.append(self)

    tunnels = [FakeTunnel(), FakeTunnel()]
    monkeypatch.setattr(tunneling, "CURRENT_TUNNELS", tunnels)

    close_links()

    assert killed == tunnels


def test_gradio_offline_is_a_failure_like_any_other(monkeypatch):
    def refuse(*_args: object, **_options: object) -> None:
        raise httpx.ConnectError("no network")

    monkeypatch.setattr(httpx, "get", refuse)

    with pytest.raises(ResourceError, match="Could not get share link"):
        open_link(7861, opener=gradio_tunnel)
