"""How the server is asked to run, as one value; `webui.cli` makes it from flags."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from webui.core.loopback import is_loopback
from webui.server.accounts import Account


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """Where to serve, to whom, and what the flags say instead of the settings (what is empty leaves them alone)."""

    host: str = "127.0.0.1"
    port: int = 7860
    share: bool = False
    accounts: tuple[Account, ...] = ()
    browser: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def loopback_only(self) -> bool:
        """Whether nobody but this machine can reach the page."""
        return not self.share and (self.host == "localhost" or is_loopback(self.host))

    @property
    def address(self) -> str:
        """The page's address as a person at this machine would type it."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.host, self.host)
        if ":" in host and not host.startswith("["):
            host = f"[{host}]"
        return f"http://{host}:{self.port}"

    def with_accounts(self, accounts: tuple[Account, ...]) -> ServerOptions:
        """The same options with these accounts."""
        return replace(self, accounts=accounts)
