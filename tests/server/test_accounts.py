"""Accounts given by flag, and the one that is made when strangers could reach the page."""

from __future__ import annotations

import pytest

from webui.core.errors import UserError
from webui.server.accounts import Account, accounts_for, parse_account
from webui.server.options import ServerOptions


def test_a_password_may_hold_colons():
    assert parse_account("ada:pass:word ") == Account("ada", "pass:word ")


@pytest.mark.parametrize("text", ["ada", "ada:", ":secret", "", "  :x"])
def test_a_name_and_a_password_are_both_needed(text):
    with pytest.raises(UserError, match="--auth needs a name and a password") as raised:
        parse_account(text)
    assert "secret" not in str(raised.value)


def test_a_page_for_this_machine_needs_no_account():
    assert accounts_for([], loopback_only=True) == ((), None)


def test_an_open_page_without_an_account_gets_one_that_cannot_be_guessed():
    accounts, made = accounts_for([], loopback_only=False)
    _, other = accounts_for([], loopback_only=False)

    assert made is not None
    assert other is not None
    assert accounts == (made,)
    assert len(made.password) >= 16
    assert made.password != other.password
    assert made.password not in repr(made)


def test_given_accounts_are_used_as_they_are():
    given = [Account("ada", "x"), Account("bob", "y")]
    assert accounts_for(given, loopback_only=False) == (tuple(given), None)


def test_a_name_given_twice_is_refused():
    with pytest.raises(UserError, match="'ada' twice"):
        accounts_for([Account("ada", "x"), Account("ada", "y")], loopback_only=True)


@pytest.mark.parametrize(
    ("host", "share", "expected"),
    [
        ("127.0.0.1", False, True),
        ("localhost", False, True),
        ("::1", False, True),
        ("127.0.0.1", True, False),
        ("0.0.0.0", False, False),
        ("::", False, False),
        ("192.168.1.5", False, False),
        ("studio.lan", False, False),
    ],
)
def test_who_can_reach_the_page(host, share, expected):
    assert ServerOptions(host=host, share=share).loopback_only is expected


@pytest.mark.parametrize(
    ("host", "address"),
    [("0.0.0.0", "http://127.0.0.1:7860"), ("::", "http://[::1]:7860"), ("::1", "http://[::1]:7860")],
)
def test_the_address_can_be_typed_into_a_browser(host, address):
    assert ServerOptions(host=host).address == address
