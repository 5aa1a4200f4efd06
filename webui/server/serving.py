"""Runs the web application until it is asked to stop."""

from __future__ import annotations

import logging
import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

logger = logging.getLogger(__name__)

STREAMS_END_WITHIN_S = 2


class _Server(uvicorn.Server):
    """Uvicorn, telling when it listens and when it is about to stop."""

    def __init__(self, config: uvicorn.Config, *, listening: Callable[[], None], stopping: Callable[[], None]) -> None:
        super().__init__(config)
        self._listening = listening
        self._stopping = stopping

    def stop(self, number: int, frame: FrameType | None) -> None:
        """A signal handler that asks the server to stop."""
        del number, frame
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._listening()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._stopping()
        await super().shutdown(sockets)


def serve(
    application: ASGIApp, taken: socket.socket, *, listening: Callable[[], None], stopping: Callable[[], None]
) -> None:
    """Serves on a bound socket until SIGINT or SIGTERM; call it from the main thread.

    `listening` and `stopping` are called on the event loop, once each, and must be quick.
    """
    config = uvicorn.Config(
        application,
        log_config=None,
        log_level="warning",
        access_log=False,
        ws="none",
        # The address a request comes from decides about extensions, so no header may change it.
        proxy_headers=False,
        timeout_graceful_shutdown=STREAMS_END_WITHIN_S,
    )
    server = _Server(config, listening=listening, stopping=stopping)
    # Uvicorn raises the signal again once it has stopped, for whoever handled it before; that is the normal end here.
    before = {number: signal.signal(number, server.stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.run(sockets=[taken])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    logger.info("The server has stopped.")
