"""Hands the values of many components to a handler as one.

Once a handler has run, gradio's page keeps telling each of its inputs, through a walk over the whole page, whatever
becomes of any event: a form of seventy fields that was sent once would slow every preview from then on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr
from gradio.blocks import BlockContext
from gradio.components import Component
from gradio.events import Dependency

UNSEEN = "unseen"  # the class of components that only carry values

_AS_THEY_ARE = "(...values) => values"


def on_click(
    button: gr.Button,
    handler: Callable[..., Any],
    *,
    inputs: Sequence[Component],
    outputs: Sequence[Component | BlockContext],
    js: str = _AS_THEY_ARE,
) -> Dependency:
    """Lets `button` call `handler` with the values of `inputs`, unprocessed, as they were when it was pressed.

    `js` gets the values of those that are no `gr.State` and returns as many; where it fails, `handler` is not called.
    """
    kept = [component for component in inputs if isinstance(component, gr.State)]  # these never leave the server
    asked = [component for component in inputs if not isinstance(component, gr.State)]
    values = gr.JSON(visible=False, elem_classes=UNSEEN)

    @functools.wraps(handler)
    def spread(*arguments: Any) -> Any:
        own = len(arguments) - len(kept) - 1  # what gradio adds, such as the request
        states, others = iter(arguments[own:-1]), iter(arguments[-1])
        return handler(*arguments[:own], *(next(states if component in kept else others) for component in inputs))

    return button.click(
        fn=None,
        inputs=asked,
        outputs=[values],
        js=f"async (...values) => [await ({js})(...values)]",
        show_progress="hidden",
    ).success(
        spread,
        inputs=[*kept, values],
        outputs=list(outputs),
        show_progress="hidden",
        preprocess=False,
        concurrency_limit=None,
    )
