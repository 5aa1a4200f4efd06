"""Routes for the launcher, for tests and for monitoring. They tell nothing about anybody's work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter

from webui import __version__
from webui.core.ports import EngineStatus


def internal_router(engine_status: Callable[[], EngineStatus]) -> APIRouter:
    """The routes under /internal; `engine_status` is asked at each call."""
    router = APIRouter(prefix="/internal")

    @router.get("/ping")
    def ping() -> dict[str, Any]:
        """That the server answers, and the engine's phase: "warming up", "ready" or "failed"."""
        return {"ok": True, "version": __version__, "engine": engine_status().phase}

    return router
