"""Who may install, enable and remove extensions: only somebody at this machine, on Atelier's own page.

An extension is code that runs as the person who started Atelier, so this is the gate to the whole machine. An address
alone does not tell: a share tunnel and a reverse proxy connect from loopback on behalf of the whole world, and another
site's script in the local browser does too. Whatever is unclear is refused. Facts come in as plain strings, so that
this module knows neither gradio nor fastapi.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from urllib.parse import urlsplit

from webui.core.errors import NotAllowed

FORWARDING_HEADERS = frozenset(
    {"forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip", "cf-connecting-ip"}
)


def is_loopback(host: str | None) -> bool:
    """Whether `host`, the address a connection came from, is this machine's loopback.

    Takes IPv4, IPv6 (with or without a zone) and IPv4-mapped IPv6. Anything else – None, a name, an empty string – is
    not: a server behind a unix socket cannot say who is calling.
    """
    try:
        address = ipaddress.ip_address(host or "")
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped.is_loopback
    return address.is_loopback


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
    if not _names_loopback(host):
        return False
    if lower.get("sec-fetch-site", "same-origin") not in {"same-origin", "none"}:
        return False
    origin = lower.get("origin")
    return origin is None or _authority(origin) == host.lower()


def require_local(client: str | None, headers: Mapping[str, str]) -> None:
    """Raises `NotAllowed` unless `may_manage`."""
    if not may_manage(client, headers):
        raise NotAllowed(
            "Extensions can only be managed from the machine that Atelier runs on; "
            "open the page there at http://127.0.0.1 with its port."
        )


def _names_loopback(authority: str) -> bool:
    try:
        name = urlsplit(f"//{authority}").hostname
    except ValueError:
        return False
    return name == "localhost" or is_loopback(name)


def _authority(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""
