"""Who looks at the page: whether somebody at this machine, which some of its buttons are only for."""

from __future__ import annotations

import gradio as gr

from webui.extensions.access import may_manage


def client_host(request: gr.Request) -> str | None:
    """The address that a request came from; None where the server does not know it."""
    return request.client.host if request.client is not None else None


def is_at_this_machine(request: gr.Request) -> bool:
    """Whether the request may do what only somebody at this machine may (`webui.extensions.access.may_manage`)."""
    return may_manage(client_host(request), dict(request.headers))
