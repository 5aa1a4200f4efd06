"""Puts gradio's page and our routes into one web application, closed at the edges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio
from fastapi import APIRouter, FastAPI
from starlette.middleware import Middleware

from webui.api.gatekeeper import Gatekeeper
from webui.server.accounts import Account

MAX_UPLOAD = "64mb"


class PageApplication:
    """The page and the routes as one ASGI application, and the handle that ends its open streams."""

    def __init__(
        self,
        page: gradio.Blocks,
        *,
        style: Mapping[str, Any],
        routers: Sequence[APIRouter],
        pictures: Path,
        accounts: Sequence[Account],
        loopback_only: bool,
    ) -> None:
        """`style` is what `gradio.mount_gradio_app` takes about looks; `pictures` may be shown on the page."""
        self.page = page
        undocumented: dict[str, Any] = {"docs_url": None, "redoc_url": None, "openapi_url": None}
        self.asgi = FastAPI(
            title="Atelier",
            **undocumented,
            middleware=[Middleware(Gatekeeper, loopback_only=loopback_only)],
        )
        for router in routers:
            self.asgi.include_router(router)
        gradio.mount_gradio_app(
            self.asgi,
            page,
            path="/",
            app_kwargs=undocumented,
            auth=[(account.user, account.password) for account in accounts] or None,
            allowed_paths=[str(pictures)],
            max_file_size=MAX_UPLOAD,
            show_error=False,
            enable_monitoring=False,
            run_history=False,
            ssr_mode=False,
            mcp_server=False,
            pwa=False,
            footer_links=[],
            **style,
        )
        # Gradio checks that a file sent by a client is one that was uploaded only after `launch()`; a mounted page
        # would read any file of this machine.
        page.has_launched = True

    def end_streams(self) -> None:
        """Ends the connections that pages hold open, so that the server need not wait for them."""
        self.page.is_running = False
        for route in self.asgi.routes:
            event = getattr(getattr(route, "app", None), "stop_event", None)
            if event is not None:
                event.set()
