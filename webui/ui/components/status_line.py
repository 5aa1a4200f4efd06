"""The line beside the checkpoint menu: "warming up…" until the engine is ready, then what it runs on. Pure."""

from __future__ import annotations

import html

from webui.core.ports import EngineStatus


def status_line(status: EngineStatus) -> str:
    """The line as HTML; its `data-phase` colours the dot in front of it."""
    if status.phase == "ready":
        known = (status.device, status.attention, status.checkpoint, status.memory)
        words = " · ".join(part for part in known if part) or "ready"
    elif status.phase == "failed":
        words = status.detail or "The engine could not start; the log has the details."
    else:
        words = "warming up…"
    return (
        f"<p class='engine-status' role='status' data-phase='{html.escape(status.phase, quote=True)}'>"
        f"<span class='dot' aria-hidden='true'></span>{html.escape(words)}</p>"
    )
