"""The layout of a tab that makes pictures: what to make on the left, the picture as the hero on the right.

On a phone the three parts stand below each other, with the picture between the prompt and the settings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component

from webui.core.fields import get_field, replaced
from webui.core.geometry import Size
from webui.core.infotext import KnownModels, infotext_to_request, parse_infotext
from webui.ui.components.form import Form, SettingButtons, add_prompts, add_settings
from webui.ui.components.job_panel import (
    NO_ACTIONS,
    ResultPanel,
    RunButtons,
    add_result_panel,
    add_run_buttons,
    shown_image,
)
from webui.ui.components.more import More, add_more
from webui.ui.components.together import on_click
from webui.ui.more import BASES, shown_value
from webui.ui.reading import RESIZE_BY
from webui.ui.services import Services
from webui.ui.toasts import guarded, inform, warn


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What stands above the tabs and every tab needs; `remembered` is the checkpoint that a reload brings back."""

    checkpoint: gr.Dropdown
    remembered: gr.BrowserState
    refresh: gr.Button
    status: gr.HTML
    native_size: Size


@dataclass(frozen=True, slots=True, kw_only=True)
class Studio:
    """A built tab: its form, its buttons, where its job shows, and the picture it starts from (None in txt2img).

    A tab may add more to the column of its `settings` once it is built.
    """

    header: Header
    form: Form
    run: RunButtons
    result: ResultPanel
    picture: Component | None
    settings: gr.Column

    @property
    def canvas(self) -> gr.HTML:
        """The picture's canvas, for tabs that are known to have one."""
        if not isinstance(self.picture, gr.HTML):
            raise TypeError(f"the tab {self.form.tab} has no canvas")
        return self.picture

    @property
    def started_from(self) -> Component:
        """The picture's component, for tabs that are known to have one."""
        if self.picture is None:
            raise ValueError(f"the tab {self.form.tab} starts from no picture")
        return self.picture


def build_studio(
    tab: str,
    services: Services,
    header: Header,
    *,
    picture: Callable[[], Component] | None = None,
    extra: Callable[[Form], None] | None = None,
    after_settings: Callable[[Form], None] | None = None,
    actions: Mapping[str, str] = NO_ACTIONS,
) -> Studio:
    """Lays out a generation tab; `picture` makes the input above the prompt.

    `extra` adds fields that only this tab has before the settings, `after_settings` behind them; `actions` are buttons
    for the shown picture (see `add_result_panel`).
    """
    form = Form(tab=tab)
    with gr.Row(elem_classes=["studio", f"studio-{tab}"]):
        with gr.Column(elem_classes="studio-ask"):
            start = picture() if picture is not None else None
            add_prompts(form, services.count_tokens)
            run = add_run_buttons(tab)
        with gr.Column(elem_classes="studio-picture"):
            result = add_result_panel(tab, actions=actions)
        with gr.Column(elem_classes="studio-settings") as settings:
            if extra is not None:
                extra(form)
            buttons = add_settings(form, header.native_size)
            if after_settings is not None:
                after_settings(form)
            more = add_more(form, services.catalogue)
            read = gr.Button(
                "Read parameters from the prompt", size="sm", elem_id=f"{tab}_paste", elem_classes="read-parameters"
            )
    _wire_buttons(services, form, buttons, more, result)

    def read_parameters(checkpoint: Any, *values: Any) -> list[Any]:
        changes = read_prompt(form, {**form.values(values), "checkpoint": checkpoint}, services.known_models())
        return [changes.get("checkpoint", gr.skip()), *form.updates(changes)]

    fields = [header.checkpoint, *form.components]
    on_click(read, guarded(read_parameters), inputs=fields, outputs=fields).then(**keep_checkpoint(header))
    return Studio(header=header, form=form, run=run, result=result, picture=start, settings=settings)


def _wire_buttons(services: Services, form: Form, buttons: SettingButtons, more: More, result: ResultPanel) -> None:
    size = [form.fields["width"], form.fields["height"]]
    buttons.swap.click(fn=None, js="(width, height) => [height, width]", inputs=size, outputs=size)
    buttons.dice.click(fn=None, js="() => -1", outputs=[form.fields["seed"]])

    more.dice.click(fn=None, js="() => -1", outputs=[form.fields["variation.seed"]])

    def last_seed(shown: object) -> Any:
        image = shown_image(services.jobs, shown)
        if image is None:
            inform("There is no picture whose seed could be used again.")
            return gr.skip()
        return image.seed

    def last_variation(shown: object) -> Any:
        image = shown_image(services.jobs, shown)
        seed = None if image is None else parse_infotext(image.infotext).pairs.get("Variation seed")
        if seed is None:
            inform("There is no picture with a variation whose seed could be used again.")
            return gr.skip()
        return int(seed)

    more.reuse.click(
        guarded(last_variation),
        inputs=[result.shown],
        outputs=[form.fields["variation.seed"]],
        show_progress="hidden",
    )

    buttons.reuse.click(
        guarded(last_seed), inputs=[result.shown], outputs=[form.fields["seed"]], show_progress="hidden"
    )


def keep_checkpoint(header: Header) -> dict[str, Any]:
    """What an event does after it may have changed the checkpoint: the browser remembers which it is."""
    return {"fn": None, "js": "(name) => name", "inputs": [header.checkpoint], "outputs": [header.remembered]}


def read_prompt(form: Form, values: Mapping[str, Any], models: KnownModels) -> dict[str, Any]:
    """What changes in a form when the infotext in its prompt is read; says so where there is none."""
    found = str(values.get("prompt") or "")
    if not parse_infotext(found).pairs:
        inform("There are no parameters in the prompt; paste a picture's parameters there first.")
        return {}
    return pasted_values(form.tab, found, values, models)


def pasted_values(tab: str, infotext: str, values: Mapping[str, Any], models: KnownModels) -> dict[str, Any]:
    """The fields that `infotext` changes in the form of `tab` that holds `values`, "checkpoint" among them.

    What the text names in vain is shown as a toast. A size in the text is one to be used, so it ends "Resize by".
    """
    # A request is a plain record: it may hold whatever the form does, and only what the text changes is looked at.
    base = BASES[tab]
    parsed = parse_infotext(infotext)
    held = {name: value for name, value in values.items() if name != RESIZE_BY}
    pasted = infotext_to_request(parsed, replaced(base, held), models)
    for sentence in pasted.warnings:
        warn(sentence)
    changed = {name: shown_value(tab, name, get_field(pasted.request, name)) for name in held}
    if "Size" in parsed.pairs and values.get(RESIZE_BY):
        changed[RESIZE_BY] = 0
    return {name: value for name, value in changed.items() if value != values[name]}
