"""Taking the port, before anything slow is loaded, so that a port in use is said at once."""

from __future__ import annotations

import errno
import socket

from webui.core.errors import ResourceError, UserError


def take_port(host: str, port: int) -> socket.socket:
    """A socket bound to the address, not yet listening; port 0 takes any free one.

    Raises `ResourceError` where the port is in use or not allowed, `UserError` where the host is not this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise UserError(
            f"The host {host!r} is not known: {error.strerror}; give an address of this machine."
        ) from error
    taken = socket.socket(family, kind, protocol)
    # A server that has just died leaves connections in TIME_WAIT, which would hold the port for a minute.
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind(address)
    except OSError as error:
        taken.close()
        raise explain(host, port, error) from error
    return taken


def explain(host: str, port: int, error: OSError) -> ResourceError | UserError:
    """The sentence for a port that could not be bound or listened to."""
    if error.errno == errno.EADDRINUSE:
        return ResourceError(f"Port {port} is in use; stop what uses it or choose another with --port.")
    if error.errno == errno.EACCES:
        return ResourceError(f"Port {port} may not be used by this account; choose one above 1023 with --port.")
    return UserError(f"Cannot listen at {host!r}, port {port}: {error.strerror}; give an address of this machine.")
