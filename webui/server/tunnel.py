"""The public link, through gradio's tunnel.

Opening one needs the network twice: gradio's server names a relay, and on first use a tunnel program is downloaded.
Both can take their time or fail, so it is done beside the running page, which never depends on it.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable

from webui.core.errors import ResourceError

OPENING_TIMEOUT_S = 75.0  # gradio's own limits are 30 s for each of its steps

Opener = Callable[[str, int], str]


def gradio_tunnel(host: str, port: int) -> str:
    """Opens gradio's tunnel to a local port and returns the public address; raises whatever gradio raises."""
    from gradio import networking

    return networking.setup_tunnel(host, port, secrets.token_urlsafe(32), None, None)


def open_link(port: int, *, opener: Opener = gradio_tunnel, timeout_s: float = OPENING_TIMEOUT_S) -> str:
    """The public address of the page at `port`; raises `ResourceError` with one sentence when there is none."""
    answer: list[str] = []
    failure: list[Exception] = []

    def attempt() -> None:
        try:
            answer.append(opener("127.0.0.1", port))
        except Exception as error:  # whatever goes wrong out there, the page stays up
            failure.append(error)

    # A thread that can be left behind: a tunnel program that says nothing would hold the answer for ever.
    thread = threading.Thread(target=attempt, name="share-link", daemon=True)
    thread.start()
    thread.join(timeout_s)
    if answer:
        return answer[0]
    reason = _first_line(failure[0]) if failure else f"no answer within {timeout_s:g} seconds"
    raise ResourceError(f"The public link could not be opened ({reason}); the page stays up on this machine.")


def close_links() -> None:
    """Ends the tunnel programs that were started, so that none outlives the page."""
    from gradio import tunneling

    for tunnel in tunneling.CURRENT_TUNNELS:
        tunnel.kill()


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")
