"""The page as a whole: the line above the tabs, the tabs, and what connects them.

`build_page` makes the Blocks, `page_style` what it must be served with to look as meant (Gradio 6 takes theme and
style where a page is mounted or launched). Nothing is fetched from anywhere but the page's own server.
"""

from __future__ import annotations

import html
import json
import logging
import time
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from webui.core.errors import CheckpointNotFound
from webui.core.geometry import Size
from webui.core.ports import ModelCatalogue
from webui.ui import memory
from webui.ui.components.more import keep_menus_fresh
from webui.ui.components.status_line import status_line
from webui.ui.components.studio import Header, Studio
from webui.ui.components.together import UNSEEN
from webui.ui.services import Services
from webui.ui.tabs.extensions import build_extensions
from webui.ui.tabs.img2img import build_img2img
from webui.ui.tabs.inpaint import build_inpaint
from webui.ui.tabs.pnginfo import build_pnginfo
from webui.ui.tabs.queue import build_queue
from webui.ui.tabs.settings import build_settings
from webui.ui.tabs.txt2img import build_txt2img
from webui.ui.tabs.upscale import build_upscale
from webui.ui.theme import atelier_theme
from webui.ui.toasts import guarded
from webui.ui.transfer import wire_sending

_ASSETS = Path(__file__).parent / "assets"
_SCRIPTS = ("atelier.js", "canvas_document.js", "canvas.js")
_STYLES = ("atelier.css", "canvas.css")
_FALLBACK_SIZE = Size(512, 512)
_WARM_UP_LOOK_S = 0.3

_log = logging.getLogger(__name__)


def page_style() -> dict[str, Any]:
    """How the page looks and behaves in the browser: keyword arguments for `gradio.mount_gradio_app` or `launch`."""
    scripts = ((_ASSETS / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    return {
        "theme": atelier_theme(),
        "css_paths": [_ASSETS / name for name in _STYLES],
        # In the head and not as `js`, so that it is there before the first component reports a change.
        "head": "".join(f"<script>{script}</script>" for script in scripts),
    }


def build_page(services: Services) -> gr.Blocks:
    """The page. Loads no torch; the engine may still be warming up."""
    with gr.Blocks(title="Atelier", analytics_enabled=False, fill_width=True) as page:
        header = _build_header(page, services)
        with gr.Tabs(elem_id="tabs", overflow_behavior="wrap") as tabs:
            with gr.Tab("txt2img", id="txt2img", elem_id="tab_txt2img") as first:
                txt2img = build_txt2img(page, services, header)
            with gr.Tab("img2img", id="img2img", elem_id="tab_img2img") as second:
                img2img = build_img2img(page, services, header)
            with gr.Tab("Inpaint", id="inpaint", elem_id="tab_inpaint") as third:
                inpaint = build_inpaint(page, services, header)
            with gr.Tab("Upscale", id="upscale", elem_id="tab_upscale") as fourth:
                upscale = build_upscale(page, services, header)
            with gr.Tab("PNG info", id="pnginfo", elem_id="tab_pnginfo") as fifth:
                info = build_pnginfo(services)
            with gr.Tab("Queue", id="queue", elem_id="tab_queue") as sixth:
                timer = build_queue(services, sixth)
            own = set(page.fns)
            added = _add_extension_tabs(services)
            theirs = set(page.fns) - own
            with gr.Tab("Extensions", id="extensions", elem_id="tab_extensions") as seventh:
                build_extensions(page, services)
            with gr.Tab("Settings", id="settings", elem_id="tab_settings") as eighth:
                build_settings(page, services)
        studios = {"txt2img": txt2img, "img2img": img2img, "inpaint": inpaint, "upscale": upscale}
        wire_sending(services, studios, info, tabs)
        _follow_checkpoint(services, header, studios)
        for studio in (txt2img, img2img, inpaint):
            keep_menus_fresh(page, studio.form, services.catalogue, header.refresh)
        _remember_tab(page, tabs, [first, second, third, fourth, fifth, sixth, *added, seventh, eighth], timer)
        _lighten(page, added=theirs)
    return page


def native_size(catalogue: ModelCatalogue, name: str) -> Size:
    """The size that the checkpoint `name` was made for, or 512×512 where there is no such checkpoint."""
    try:
        return catalogue.checkpoint(name).native_size
    except CheckpointNotFound:
        return _FALLBACK_SIZE


def _build_header(page: gr.Blocks, services: Services) -> Header:
    names, chosen = _checkpoints(services, "")
    with gr.Row(elem_id="quicksettings"):
        gr.HTML("<h1 class='brand'>Atelier</h1>", elem_classes="brand-holder")
        checkpoint = gr.Dropdown(
            names,
            value=chosen,
            label="Checkpoint",
            elem_id="setting_sd_model_checkpoint",
            scale=0,
            min_width=280,
            interactive=True,
        )
        refresh = gr.Button(
            "Look for new checkpoints",
            elem_id="refresh_sd_model_checkpoint",
            elem_classes=["tool", "refresh"],
            size="sm",
            scale=0,
            min_width=44,
        )
        status = gr.HTML(status_line(services.engine_status()), elem_id="engine_status", elem_classes="status-holder")
    if services.settings.notice is not None:
        gr.HTML(f"<p class='notice' role='status'>{html.escape(services.settings.notice)}</p>")
    stored = memory.browser_state("checkpoint", "")

    def renew(wanted: object) -> gr.Dropdown:
        found, value = _checkpoints(services, wanted)
        return gr.Dropdown(choices=found, value=value)

    def watch_engine() -> Iterator[str]:
        while True:
            now = services.engine_status()
            yield status_line(now)
            if now.phase != "warming up":
                return
            time.sleep(_WARM_UP_LOOK_S)

    page.load(guarded(renew), inputs=[stored], outputs=[checkpoint], show_progress="hidden", queue=False)
    page.load(guarded(watch_engine), outputs=[status], show_progress="hidden", concurrency_limit=None)
    refresh.click(guarded(renew), inputs=[checkpoint], outputs=[checkpoint], show_progress="hidden", preprocess=False)
    checkpoint.input(fn=None, js="(name) => name", inputs=[checkpoint], outputs=[stored])
    return Header(
        checkpoint=checkpoint,
        remembered=stored,
        refresh=refresh,
        status=status,
        native_size=native_size(services.catalogue, chosen or ""),
    )


def _checkpoints(services: Services, wanted: object) -> tuple[list[str], str | None]:
    """The names to choose from, and which of them to show: `wanted`, or the settings' one, or the first."""
    names = [info.name for info in services.catalogue.checkpoints()]
    for name in (wanted, services.settings.current.checkpoint):
        if isinstance(name, str) and name in names:
            return names, name
    return names, names[0] if names else None


def _follow_checkpoint(services: Services, header: Header, studios: dict[str, Studio]) -> None:
    """Another checkpoint brings its own size into every form."""
    sizes = [
        studio.form.fields[side]
        for studio in studios.values()
        if "width" in studio.form.fields
        for side in ("width", "height")
    ]

    def follow(name: str) -> list[int]:
        size = native_size(services.catalogue, name or "")
        return [size.width, size.height] * (len(sizes) // 2)

    header.checkpoint.input(
        guarded(follow), inputs=[header.checkpoint], outputs=sizes, show_progress="hidden", preprocess=False
    )


def _add_extension_tabs(services: Services) -> list[gr.Tab]:
    """A tab for each that the extensions add; one that fails says so in its place."""
    added = []
    for name, tab in services.extensions.tabs():
        identity = f"{name}-{tab.id}"
        with gr.Tab(tab.title, id=identity, elem_id=f"tab_{identity}") as made:
            before = services.extensions.error(name)
            tab.build()
            error = services.extensions.error(name)
            if error is not None and error != before:
                gr.HTML(f"<p class='extension-error' role='alert'>{html.escape(error)}</p>")
        added.append(made)
    return added


def _lighten(page: gr.Blocks, *, added: Container[int]) -> None:
    """Spares the browser what gradio does for each event and nobody sees; `added` are the events of extensions.

    An event whose progress is hidden still has gradio's page tell it to each of its outputs, and to every output of
    every event before, by a walk through the whole page: seconds in all, and again for each preview. With nothing to
    tell it to, nothing is told; and what has no place on the page comes first, where the other walks find it soon. And
    gradio writes a description of each public event, with snippets of code for programs, into every page it sends:
    more bytes than the page itself. Extensions keep theirs.
    """
    for block in list(page.blocks.values()):
        unseen = isinstance(block, gr.State | gr.BrowserState) or UNSEEN in (block.elem_classes or ())
        if unseen and block.parent is not None:
            block.parent.children.remove(block)
            block.parent = page
            page.children.insert(0, block)
    for number, event in page.fns.items():
        if event.show_progress == "hidden":
            event.show_progress_on = []
        if number not in added:
            event.api_visibility = "private"


def _remember_tab(page: gr.Blocks, tabs: gr.Tabs, known: list[gr.Tab], timer: gr.Timer) -> None:
    """Opens the tab that was open before a reload; the queue is only asked for while its tab is open."""
    stored = memory.browser_state("tab", "")
    ids = [tab.id for tab in known]

    def reopen(wanted: object) -> list[Any]:
        return [gr.Tabs(selected=str(wanted)) if wanted in ids else gr.skip(), gr.Timer(active=wanted == "queue")]

    for tab in known:
        save = f"(memory) => window.atelier.tabToSave(memory, {json.dumps(tab.id)})"
        tab.select(fn=None, js=save, inputs=[stored], outputs=[stored])
        tab.select(
            lambda here=tab.id == "queue": gr.Timer(active=here), outputs=[timer], show_progress="hidden", queue=False
        )
    page.load(reopen, inputs=[stored], outputs=[tabs, timer], show_progress="hidden", queue=False).then(
        fn=None, js="() => window.atelier.tabIsRestored()"
    )
