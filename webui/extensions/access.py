"""Who may install, enable and remove extensions: only somebody at this machine, on Atelier's own page.

An extension is code that runs as the person who started Atelier, so this is the gate to the whole machine. An address
alone does not tell: a share tunnel and a reverse proxy connect from loopback on behalf of the whole world, and another
site's script in the local browser does too. Whatever is unclear is refused. Facts come in as plain strings, so that
this module knows neither gradio nor fastapi.
"""

from __future__ import annotations

from collections.abc import Mapping

from webui.core.errors import NotAllowed
from webui.core.loopback import authority_of, is_loopback, names_loopback

FORWARDING_HEADERS = frozenset(
    {"forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip", "cf-connecting-ip"}
)


def may_manage(client: str | None, headers: Mapping[str, str]) -> bool:
    """Whether a request may manage extensions.

    `client` is the address that the connection came from, `headers` are the request's (in any case). All of this must
    hold: the connection is from loopback; nothing forwarded it; the Host header names loopback (or the name could be
    another site's, pointed here by DNS rebinding; a share link's is gradio.live); and the Origin header, if there is
    one, is that of the page itself.
    """
    lower = {name.lower(): value for name, value in headers.items()}
    if not is_loopback(client) or FORWARDING_HEADERS & lower.keys():
        return False
    host = lower.get("host", "")
    if not names_loopback(host):
        return False
    if lower.get("sec-fetch-site", "same-origin") not in {"same-origin", "none"}:
        return False
    origin = lower.get("origin")
    return origin is None or authority_of(origin) == host.lower()


def require_local(client: str | None, headers: Mapping[str, str]) -> None:
    """Raises `NotAllowed` unless `may_manage`."""
    if not may_manage(client, headers):
        raise NotAllowed(
            "Extensions can only be managed from the machine that Atelier runs on; "
            "open the page there at http://127.0.0.1 with its port."
        )
