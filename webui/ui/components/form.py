"""The fields that txt2img, img2img and inpaint share, by the names of the request's fields, with A1111's element ids.

Numbers have no hard limits here: what is out of range reaches `webui.core.validation`, which says so in a sentence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import gradio as gr
from gradio.components import Component

from webui.core import catalogue
from webui.core.geometry import Size
from webui.core.prompt.counting import TokenCount
from webui.core.requests import Txt2Img
from webui.ui.components.token_counter import add_counter, wire_counter
from webui.ui.reading import GENERATION_LABELS

_DEFAULTS = Txt2Img()


@dataclass(slots=True, kw_only=True)
class Form:
    """A tab's fields in the order of its layout; `values` turns an event's arguments back into names."""

    tab: str
    fields: dict[str, Component] = field(default_factory=dict)

    @property
    def components(self) -> list[Component]:
        """The fields, in the order that `values` expects."""
        return list(self.fields.values())

    def values(self, arguments: tuple[Any, ...]) -> dict[str, Any]:
        """The arguments of an event with `components` as inputs, by name."""
        return dict(zip(self.fields, arguments, strict=True))

    def updates(self, values: Mapping[str, Any]) -> list[Any]:
        """What an event with `components` as outputs returns to set `values` and leave the other fields alone."""
        return [values.get(name, gr.skip()) for name in self.fields]

    def number(self, name: str, label: str, value: float, **options: Any) -> gr.Number:
        """Adds a number without limits."""
        self.fields[name] = made = gr.Number(
            value, label=label, elem_id=f"{self.tab}_{name}", min_width=options.pop("min_width", 88), **options
        )
        return made

    def slider(self, name: str, label: str, value: float, limits: tuple[float, float], step: float) -> gr.Slider:
        """Adds a slider with a text box."""
        low, high = limits
        self.fields[name] = made = gr.Slider(
            low, high, value, step=step, label=label, elem_id=f"{self.tab}_{name}", min_width=150, buttons=[]
        )
        return made

    def choice(self, name: str, label: str, value: str, choices: tuple[str, ...], elem_id: str = "") -> gr.Dropdown:
        """Adds a menu."""
        self.fields[name] = made = gr.Dropdown(
            list(choices), value=value, label=label, elem_id=elem_id or f"{self.tab}_{name}", min_width=150
        )
        return made

    def radio(self, name: str, label: str, value: str, choices: tuple[str, ...]) -> gr.Radio:
        """Adds a row of choices."""
        self.fields[name] = made = gr.Radio(
            list(choices), value=value, label=label, elem_id=f"{self.tab}_{name}", elem_classes="choices"
        )
        return made


def add_prompts(form: Form, count_tokens: Callable[[str], TokenCount]) -> None:
    """Adds the prompt and the negative prompt, each with a count of its tokens."""
    counter = add_counter(f"{form.tab}_token_counter")
    form.fields["prompt"] = prompt = gr.Textbox(
        label="Prompt",
        lines=3,
        max_lines=8,
        placeholder="What should the picture show?",
        elem_id=f"{form.tab}_prompt",
        elem_classes="prompt",
        autofocus=form.tab == "txt2img",
    )
    negative_counter = add_counter(f"{form.tab}_negative_token_counter")
    form.fields["negative_prompt"] = negative = gr.Textbox(
        label="Negative prompt",
        lines=1,
        max_lines=6,
        placeholder="What should it not show?",
        elem_id=f"{form.tab}_neg_prompt",
        elem_classes="prompt",
    )
    wire_counter(prompt, counter, count_tokens)
    wire_counter(negative, negative_counter, count_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingButtons:
    """The small buttons among the settings."""

    swap: gr.Button
    dice: gr.Button
    reuse: gr.Button


def add_settings(form: Form, size: Size) -> SettingButtons:
    """Adds sampler, steps, size, CFG scale, seed and batch; `size` is the checkpoint's own."""
    labels = GENERATION_LABELS
    with gr.Row(elem_classes="fields"):
        form.choice("sampler", labels["sampler"], _DEFAULTS.sampler, catalogue.SAMPLERS, f"{form.tab}_sampling")
        form.choice(
            "schedule_type",
            labels["schedule_type"],
            _DEFAULTS.schedule_type,
            catalogue.SCHEDULE_TYPES,
            f"{form.tab}_scheduler",
        )
    with gr.Row(elem_classes="fields"):
        form.slider("steps", labels["steps"], _DEFAULTS.steps, catalogue.STEPS_RANGE, 1)
        form.slider("cfg_scale", labels["cfg_scale"], _DEFAULTS.cfg_scale, catalogue.CFG_SCALE_RANGE, 0.5)
    with gr.Row(elem_classes="fields size-fields"):
        form.number("width", labels["width"], size.width, step=catalogue.DIMENSION_STEP)
        swap = tool_button("Swap width and height", f"{form.tab}_res_switch_btn", "swap-size")
        form.number("height", labels["height"], size.height, step=catalogue.DIMENSION_STEP)
    with gr.Row(elem_classes="fields"):
        form.number("batch_count", labels["batch_count"], _DEFAULTS.batch_count)
        form.number("batch_size", labels["batch_size"], _DEFAULTS.batch_size)
    with gr.Row(elem_classes="fields seed-fields"):
        form.number("seed", "Seed (-1 picks one)", _DEFAULTS.seed, min_width=140)
        dice = tool_button("Random seed", f"{form.tab}_random_seed", "random-seed")
        reuse = tool_button("Reuse the last seed", f"{form.tab}_reuse_seed", "reuse-seed")
    return SettingButtons(swap=swap, dice=dice, reuse=reuse)


def tool_button(words: str, elem_id: str, kind: str) -> gr.Button:
    """A small button with a sign; `kind` says which."""
    # assets/atelier.css shows a sign in place of the words, which stay for screen readers.
    return gr.Button(words, elem_id=elem_id, elem_classes=["tool", kind], size="sm", scale=0, min_width=44)
