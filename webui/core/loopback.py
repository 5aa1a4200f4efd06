"""Which addresses and names are this machine's own. Pure: facts come in as strings, nothing is looked up."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit


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


def names_loopback(authority: str) -> bool:
    """Whether a Host header's value, with or without a port, is a name of this machine's loopback."""
    try:
        name = urlsplit(f"//{authority}").hostname
    except ValueError:
        return False
    return name == "localhost" or is_loopback(name)


def authority_of(origin: str) -> str:
    """The host and port of an Origin header's value, in lower case; "" where it has none."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""
