"""The small "12/75" beside a prompt, counted while it is typed. It tells how many chunks the prompt will take."""

from __future__ import annotations

from collections.abc import Callable

import gradio as gr

from webui.core.prompt.counting import TokenCount
from webui.ui.toasts import guarded


def counter_html(count: TokenCount) -> str:
    """The counter; its title says how the tokens fall into chunks."""
    chunks = " + ".join(map(str, count.per_chunk))
    title = f"{chunks} tokens; the text encoder reads 75 at a time"
    return f"<span class='token-counter' title='{title}'>{count.used}/{count.room}</span>"


def add_counter(elem_id: str) -> gr.HTML:
    """The place of a counter, to be made right before the field that it counts."""
    return gr.HTML(counter_html(TokenCount((0,))), elem_id=elem_id, elem_classes="token-counter-holder")


def wire_counter(field: gr.Textbox, counter: gr.HTML, count_tokens: Callable[[str], TokenCount]) -> None:
    """Keeps `counter` at the count of what `field` holds.

    One question is under way at a time, and after it the newest text is asked about, so that fast typing stays light.
    """

    def count(text: str | None) -> str:
        return counter_html(count_tokens(text or ""))

    field.change(
        guarded(count),
        inputs=[field],
        outputs=[counter],
        show_progress="hidden",
        trigger_mode="always_last",
        queue=False,
        preprocess=False,
    )
