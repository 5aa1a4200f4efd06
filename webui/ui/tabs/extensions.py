"""extensions: what is installed, switched on or off, and how more comes in. Changes only from this machine."""

from __future__ import annotations

import html
from typing import Any

import gradio as gr

from webui.extensions.access import require_local
from webui.extensions.views import ExtensionView
from webui.ui.services import Services
from webui.ui.toasts import guarded, inform
from webui.ui.visitors import client_host, is_at_this_machine

_ELSEWHERE = "Extensions can only be managed from the machine that Atelier runs on."


def extension_card(view: ExtensionView) -> str:
    """What an extension says of itself, its version, where it came from, and its error. Pure; everything escaped."""
    state = "failed" if view.error else "on" if view.loaded else "off"
    facts = " · ".join(part for part in (view.version, view.source, view.commit[:10]) if part)
    error = f"<p class='extension-error' role='alert'>{html.escape(view.error)}</p>" if view.error else ""
    return (
        f"<div class='extension' data-state='{state}'><h3>{html.escape(view.name)}</h3>"
        f"<p>{html.escape(view.description) or 'No description.'}</p>"
        f"<p class='facts'>{html.escape(facts)}</p>{error}</div>"
    )


def build_extensions(page: gr.Blocks, services: Services) -> None:
    """Fills the tab."""
    host = services.extensions
    notice = gr.HTML("", elem_id="extensions_notice")
    gr.HTML("<h2>Install</h2><p class='note'>An extension is a program that runs as you. Install what you trust.</p>")
    with gr.Row(elem_classes="install-row"):
        source = gr.Textbox(
            label="Git address or folder on this machine",
            placeholder="https://example.org/someone/an-extension.git",
            elem_id="extensions_source",
            scale=4,
        )
        install = gr.Button("Install", variant="primary", elem_id="extensions_install", scale=0, min_width=120)
    gr.HTML("<h2>Installed</h2>")
    revision = gr.State(0)

    def changed(request: gr.Request, count: int, act: Any) -> int:
        require_local(client_host(request), dict(request.headers))
        sentence = act()
        if sentence:
            inform(sentence)
        return count + 1

    def do_install(request: gr.Request, address: str, count: int) -> tuple[int, str]:
        def act() -> str:
            name = host.install(address.strip())
            return f"{name} is installed. Read what it says of itself, then switch it on."

        return changed(request, count, act), ""

    install.click(guarded(do_install), inputs=[source, revision], outputs=[revision, source], show_progress="minimal")

    @gr.render(inputs=[revision], triggers=[page.load, revision.change], show_progress="hidden")
    def rows(count: int) -> None:
        views = host.extensions()
        if not views:
            gr.HTML("<p class='note'>No extension is installed.</p>")
        for view in views:
            with gr.Row(elem_classes="extension-row"):
                gr.HTML(extension_card(view), elem_id=f"extension_{view.name}")
                switch = gr.Checkbox(view.enabled, label=f"{view.name} enabled", scale=0, min_width=170)
                remove = gr.Button(f"Remove {view.name}", size="sm", scale=0, min_width=140)

            def do_switch(request: gr.Request, on: bool, name: str = view.name) -> int:
                return changed(request, count, lambda: host.enable(name) if on else host.disable(name))

            def do_remove(request: gr.Request, name: str = view.name) -> int:
                return changed(request, count, lambda: host.remove(name))

            # An extension that crashes while it is switched on stays listed with its error: show that too.
            switch.input(guarded(do_switch), inputs=[switch], outputs=[revision]).failure(
                lambda: count + 1, outputs=[revision]
            )
            remove.click(guarded(do_remove), outputs=[revision])

    def greet(request: gr.Request) -> list[Any]:
        if is_at_this_machine(request):
            return ["", gr.skip(), gr.skip()]
        note = f"<p class='note'>{_ELSEWHERE}</p>"
        return [note, gr.Textbox(interactive=False), gr.Button(interactive=False)]

    page.load(guarded(greet), outputs=[notice, source, install], show_progress="hidden", queue=False)
