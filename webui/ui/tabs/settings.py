"""settings: the few that Atelier itself has, and those of its extensions."""

from __future__ import annotations

from typing import Any

import gradio as gr
from gradio.components import Component

from webui.extensions.access import require_local
from webui.extensions.hookspecs import ExtensionSetting
from webui.ui.kinds import number
from webui.ui.services import Services
from webui.ui.tabs.extensions import client_host
from webui.ui.toasts import guarded, inform

_ATTENTION = (
    ("Automatic: the fastest that works here", "auto"),
    ("xformers", "xformers"),
    ("PyTorch SDPA", "sdpa"),
    ("Chunked, for little memory", "chunked"),
)


def build_settings(page: gr.Blocks, services: Services) -> None:
    """Fills the tab."""
    store = services.settings
    gr.HTML("<h2>Generating</h2>")
    attention = gr.Dropdown(list(_ATTENTION), label="Attention", elem_id="setting_attention")
    previews = gr.Checkbox(label="Show the picture while it forms", elem_id="setting_previews")
    rate = gr.Number(label="Previews per second, at most", elem_id="setting_previews_per_second", step=0.5)
    save = gr.Button("Save settings", variant="primary", elem_id="settings_save")
    fields: list[Component] = [attention, previews, rate]

    def show() -> list[Any]:
        now = store.current
        known = now.attention in [value for _, value in _ATTENTION]
        return [now.attention if known else gr.skip(), now.previews, now.previews_per_second]

    def keep(attention: str, previews: bool, rate: object) -> None:
        store.update(attention=attention, previews=previews, previews_per_second=number("Previews per second", rate))
        inform("The settings are saved; the next picture uses them.")

    save.click(guarded(keep), inputs=fields, show_progress="hidden")
    page.load(guarded(show), outputs=fields, show_progress="hidden", queue=False)

    @gr.render(triggers=[page.load], show_progress="hidden")
    def extension_settings() -> None:
        for name, settings in services.extensions.settings().items():
            _extension_form(services, name, settings)


def _extension_form(services: Services, name: str, settings: tuple[ExtensionSetting, ...]) -> None:
    gr.Markdown(f"## {name}")
    made = [_field(name, setting, services.extensions.value(name, setting.key)) for setting in settings]
    save = gr.Button(f"Save settings of {name}", elem_id=f"settings_save_{name}")

    def keep(request: gr.Request, *values: object) -> None:
        require_local(client_host(request), dict(request.headers))
        services.extensions.save(name, dict(zip([setting.key for setting in settings], values, strict=True)))
        inform(f"The settings of {name} are saved.")

    save.click(guarded(keep), inputs=made, show_progress="hidden")


def _field(name: str, setting: ExtensionSetting, value: Any) -> Component:
    options: dict[str, Any] = {
        "label": setting.label,
        "info": setting.help or None,
        "interactive": True,
        "elem_id": f"setting_{name}_{setting.key}",
    }
    if setting.kind == "bool":
        return gr.Checkbox(value, **options)
    if setting.kind == "choice":
        return gr.Dropdown(list(setting.choices), value=value, **options)
    if setting.kind == "str":
        return gr.Textbox(value, **options)
    return gr.Number(value, precision=0 if setting.kind == "int" else None, **options)
