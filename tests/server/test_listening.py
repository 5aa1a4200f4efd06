"""The port is taken early, and one that cannot be had is named."""

from __future__ import annotations

import socket

import pytest

from webui.core.errors import ResourceError, UserError
from webui.server.listening import take_port


def test_a_free_port_is_taken():
    with take_port("127.0.0.1", 0) as taken:
        assert taken.getsockname()[1] > 0


def test_a_port_in_use_is_named_with_the_flag():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]

        with pytest.raises(ResourceError, match=rf"Port {port} is in use; .* --port"):
            take_port("127.0.0.1", port)


def test_an_unknown_host_is_named():
    with pytest.raises(UserError, match=r"'no\.such\.host\.invalid'"):
        take_port("no.such.host.invalid", 0)


def test_an_address_of_another_machine_is_named():
    with pytest.raises(UserError, match=r"'192\.0\.2\.1'"):
        take_port("192.0.2.1", 0)
