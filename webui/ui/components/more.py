"""The section "More" of a form: every setting beyond the common ones, folded away, with a line that names the changed.

What differs from the defaults is found by the browser alone (assets/atelier.js), without a round trip for a keystroke.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component

from webui.core import catalogue
from webui.core.ports import ModelCatalogue
from webui.ui import memory
from webui.ui.components.form import Form, tool_button
from webui.ui.more import Control, MoreField, more_fields, more_groups
from webui.ui.toasts import guarded


@dataclass(frozen=True, slots=True, kw_only=True)
class More:
    """The section's parts that others listen to."""

    dice: gr.Button
    reuse: gr.Button


def add_more(form: Form, models: ModelCatalogue) -> More:
    """Adds the section to `form`; its fields stand in `form.fields` under the request's dotted names."""
    tools: list[gr.Button] = []
    with gr.Accordion("More", open=False, elem_id=f"{form.tab}_more", elem_classes="more"):
        for title, rows in more_groups(form.tab).items():
            gr.HTML(f"<h3>{title}</h3>", elem_classes="more-title", padding=False)
            for row in rows:
                with gr.Row(elem_classes="fields"):
                    for field in row:
                        form.fields[field.name] = component_of(form.tab, field, models)
                        if field.name == "variation.seed":
                            tools.append(
                                tool_button("Random variation seed", f"{form.tab}_random_subseed", "random-seed")
                            )
                            tools.append(
                                tool_button("Reuse the last variation seed", f"{form.tab}_reuse_subseed", "reuse-seed")
                            )
    with gr.Row(elem_classes="more-changed"):
        changed = gr.HTML("", elem_id=f"{form.tab}_more_changed", padding=False)
        reset = gr.Button("Reset", size="sm", scale=0, min_width=70, elem_id=f"{form.tab}_more_reset")
    _wire(form, changed, reset)
    return More(dice=tools[0], reuse=tools[1])


def model_choices(models: ModelCatalogue) -> dict[str, list[tuple[str, str]]]:
    """The choices of the menus of models, as (what is shown, value)."""
    own = {catalogue.VAE_AUTOMATIC: "Automatic", catalogue.VAE_OWN: "None (the checkpoint's own)"}
    vaes = {**own, **{name: name for name in models.vaes()}}
    refiners = {"": "None", **{info.name: info.name for info in models.checkpoints()}}
    return {
        "vae": [(shown, value) for value, shown in vaes.items()],
        "refiner": [(shown, value) for value, shown in refiners.items()],
        "sd_upscale.upscaler": [("None", ""), *((name, name) for name in models.upscalers())],
        "hires.upscaler": [(name, name) for name in (*catalogue.LATENT_UPSCALERS, *models.upscalers())],
        "hires.checkpoint": [("Same", ""), *((info.name, info.name) for info in models.checkpoints())],
        "hires.sampler": [("Same", ""), *((name, name) for name in catalogue.SAMPLERS)],
        "hires.schedule_type": [("Same", ""), *((name, name) for name in catalogue.SCHEDULE_TYPES)],
    }


def keep_menus_fresh(page: gr.Blocks, form: Form, models: ModelCatalogue, refresh: gr.Button) -> None:
    """The menus of models hold what lies in the folders when the page is loaded, or asked to look by `refresh`."""
    names = [name for name in model_choices(models) if name in form.fields]
    menus = [form.fields[name] for name in names]
    stored = memory.browser_state(f"{form.tab}.form", {})

    def renewed(*values: Any) -> list[Any]:
        known = model_choices(models)
        return [_menu(known[name], value) for name, value in zip(names, values, strict=True)]

    def restored(values: object) -> list[Any]:
        return renewed(*(values.get(name) if isinstance(values, Mapping) else None for name in names))

    quietly: dict[str, Any] = {"outputs": menus, "show_progress": "hidden", "preprocess": False}
    page.load(guarded(restored), inputs=[stored], queue=False, **quietly)
    refresh.click(guarded(renewed), inputs=menus, **quietly)


def _menu(choices: list[tuple[str, str]], value: Any) -> gr.Dropdown:
    """A menu of `choices` that shows `value`, or the first where that is gone."""
    known = [choice for _, choice in choices]
    return gr.Dropdown(choices=choices, value=value if value in known else known[0])


def component_of(tab: str, field: MoreField, models: ModelCatalogue) -> Component:
    """The component that shows `field` in `tab`."""
    options: dict[str, Any] = {"label": field.label, "elem_id": f"{tab}_{field.element}"}
    if field.control is Control.SLIDER:
        low, high = field.limits
        return gr.Slider(low, high, field.default, step=field.step, min_width=150, buttons=[], **options)
    if field.control is Control.MENU:
        choices: Any = model_choices(models).get(field.name) or list(field.choices)
        return gr.Dropdown(choices, value=field.default, min_width=130, **options)
    if field.control is Control.CHECK:
        return gr.Checkbox(field.default, min_width=150, **options)
    if field.control in (Control.OPTIONAL, Control.OPTIONAL_WHOLE, Control.TEXT):
        return gr.Textbox(field.default, min_width=100, placeholder=field.placeholder, **options)
    return gr.Number(field.default, min_width=80, **options)


def _wire(form: Form, changed: gr.HTML, reset: gr.Button) -> None:
    fields = more_fields(form.tab)
    components = [form.fields[field.name] for field in fields]
    labels = json.dumps([field.label for field in fields])
    defaults = json.dumps([field.default for field in fields])
    gr.on(
        [component.change for component in components],  # pyright: ignore[reportAttributeAccessIssue] # all inputs have one
        fn=None,
        inputs=components,
        outputs=[changed],
        js=f"(...values) => window.atelier.whatDiffers({labels}, {defaults}, values)",
        show_progress="hidden",
    )
    reset.click(fn=None, js=f"() => {defaults}", outputs=components)
