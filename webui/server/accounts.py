"""Who may sign in: accounts given by flag, or one that is made up when strangers could reach the page."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

from webui.core.errors import UserError


@dataclass(frozen=True, slots=True)
class Account:
    """A name and a password; the password stays out of logs."""

    user: str
    password: str = field(repr=False)


def parse_account(text: str) -> Account:
    """The account that ``user:password`` says; raises `UserError`, which does not repeat the password."""
    user, colon, password = text.partition(":")
    user = user.strip()
    if not colon or not user or not password:
        raise UserError(
            "--auth needs a name and a password with a colon between them, such as --auth ada:correct-horse."
        )
    return Account(user, password)


def make_account() -> Account:
    """An account with a password of 96 random bits."""
    return Account("atelier", secrets.token_urlsafe(12))


def accounts_for(given: Sequence[Account], *, loopback_only: bool) -> tuple[tuple[Account, ...], Account | None]:
    """The accounts to use, and the one among them that was made because the page is open and none was given."""
    names = [account.user for account in given]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"--auth names {twice!r} twice; give each person one password.")
    if given or loopback_only:
        return tuple(given), None
    made = make_account()
    return (made,), made
