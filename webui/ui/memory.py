"""What the browser remembers, so that a reload loses nothing: each tab's form, its jobs, and which tab was open.

Values lie in the browser's own storage and come back as anything a browser may send, so restoring keeps only what fits
the form as it is today. Saving runs in the browser alone; no server round trip for a keystroke.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import gradio as gr
from gradio.components import Checkbox, Component, Dropdown, Number, Radio, Slider

from webui.ui.components.form import Form

# Gradio encrypts what it stores. Nothing here is secret; a fixed key is what lets a restarted server read it again.
_STORAGE_KEY = "atelier"


def browser_state(name: str, default: Any) -> gr.BrowserState:
    """A value in the browser's storage under `name`."""
    return gr.BrowserState(default, storage_key=f"atelier.{name}", secret=_STORAGE_KEY)


def remember_form(page: gr.Blocks, form: Form) -> None:
    """Keeps the values of `form` in the browser and puts them back when the page loads."""
    memory = browser_state(f"{form.tab}.form", {})
    names = json.dumps(list(form.fields))
    tab = json.dumps(form.tab)
    # Components may report a change while the page is being built; until the old values are back, nothing is saved.
    save = f"(memory, ...values) => window.atelier.formToSave({tab}, {names}, memory, values)"
    gr.on(
        [component.change for component in form.components],  # pyright: ignore[reportAttributeAccessIssue] # all inputs have one
        fn=None,
        inputs=[memory, *form.components],
        outputs=[memory],
        js=save,
        show_progress="hidden",
    )
    page.load(
        lambda stored: form.updates(restorable(form, stored)),
        inputs=[memory],
        outputs=form.components,
        show_progress="hidden",
        queue=False,
    ).then(fn=None, js=f"() => window.atelier.formIsRestored({tab})")


def restorable(form: Form, stored: object) -> dict[str, Any]:
    """Those of the `stored` values that still fit a field of `form`."""
    if not isinstance(stored, Mapping):
        return {}
    return {
        name: stored[name]
        for name, component in form.fields.items()
        if name in stored and _fits(component, stored[name])
    }


def _fits(component: Component, value: object) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(component, Slider):
        return is_number and component.minimum <= value <= component.maximum  # pyright: ignore[reportOperatorIssue] # a number by is_number
    if isinstance(component, Number):
        return is_number or value is None
    if isinstance(component, Checkbox):
        return isinstance(value, bool)
    if isinstance(component, Dropdown | Radio):
        return value in [choice for _, choice in component.choices]
    return isinstance(value, str)


def job_ids(stored: object) -> list[str]:
    """The ids of a tab's jobs, oldest first, from what the browser stored."""
    if not isinstance(stored, list):
        return []
    return [item for item in stored if isinstance(item, str)]
