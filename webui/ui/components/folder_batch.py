"""A folder of this machine worked through with a tab's settings: which folders, a start and a stop, and how far it is.

Only who may manage extensions may name folders, for a result can be written wherever the server may write. Everybody
else is told so. The work itself is `webui.jobs.folders`; it goes on when the page is closed.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component

from webui.core.errors import NotAllowed
from webui.core.requests import Request
from webui.jobs.folders import OWN_PARAMETERS, FolderBatch, named_folder
from webui.jobs.views import BatchView
from webui.ui import memory
from webui.ui.components.form import Form
from webui.ui.components.together import on_click
from webui.ui.services import Services
from webui.ui.toasts import guarded, inform
from webui.ui.visitors import is_at_this_machine

ELSEWHERE = "Folders can only be worked through from the machine that Atelier runs on."


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderPanel:
    """The parts of the section; `own` is missing where pictures have no parameters to be used."""

    tab: str
    form: Form
    own: gr.CheckboxGroup | None
    note: gr.HTML
    start: gr.Button
    stop: gr.Button
    line: gr.HTML


def add_folder_batch(
    page: gr.Blocks,
    services: Services,
    *,
    tab: str,
    inputs: Sequence[Component],
    make_request: Callable[..., Request],
) -> None:
    """Adds the fields and buttons where it is called, and connects them.

    `make_request` gets the values of `inputs`, unprocessed, and returns a request of `tab` without its pictures: each
    file's take their place. With `tab` "inpaint" there is a field for masks; only "upscale" has no own parameters.
    """
    panel = _lay_out(tab)
    memory.remember_form(page, panel.form)
    _wire_start(services, panel, inputs, make_request, _wire_watching(page, services, panel))

    def greet(request: gr.Request) -> list[Any]:
        if is_at_this_machine(request):
            return ["", gr.skip()]
        return [f"<p class='note'>{ELSEWHERE}</p>", gr.Button(interactive=False)]

    page.load(guarded(greet), outputs=[panel.note, panel.start], show_progress="hidden", queue=False)


def _lay_out(tab: str) -> FolderPanel:
    form = Form(tab=f"{tab}_batch")
    note = gr.HTML("", elem_id=f"{tab}_batch_note", padding=False)
    _text(form, "inputs", "Folder of pictures", "/home/me/pictures", "input_dir")
    if tab == "inpaint":
        _text(form, "masks", "Folder of masks, by the same names", "/home/me/masks", "mask_dir")
    _text(form, "outputs", "Folder for the results", "/home/me/results", "output_dir")
    own = None
    if tab != "upscale":
        own = gr.CheckboxGroup(
            list(OWN_PARAMETERS),
            label="Use each picture's own",
            elem_id=f"{tab}_batch_use_png_info",
            elem_classes="choices",
        )
    with gr.Row(elem_classes="run-buttons"):
        start = gr.Button(
            "Start the folder", variant="primary", elem_id=f"{tab}_batch_start", scale=3, elem_classes="start-folder"
        )
        stop = gr.Button("Stop", elem_id=f"{tab}_batch_stop", scale=1, min_width=80)
    line = gr.HTML("", elem_id=f"{tab}_batch_progress", elem_classes="batch-holder", padding=False)
    return FolderPanel(tab=tab, form=form, own=own, note=note, start=start, stop=stop, line=line)


def batch_line(view: BatchView | None) -> str:
    """How far a folder is, as HTML: "12 of 80, 3 skipped, 1 failed", a bar, and what failed. Pure, all escaped."""
    if view is None:
        return ""
    words = f"{view.finished} of {view.total}"
    for count, what in ((view.skipped, "skipped"), (view.failed, "failed"), (view.cancelled, "stopped")):
        words += f", {count} {what}" if count else ""
    ended = view.total if not view.total else view.finished + view.skipped + view.failed + view.cancelled
    percent = 100 * ended // max(1, view.total)
    now = f"{html.escape(view.running)} …" if view.running else ""
    place = f"Results: {html.escape(str(view.outputs))}" if view.is_final else now
    failures = "".join(
        f"<li><b>{html.escape(name)}</b> {html.escape(sentence)}</li>" for name, sentence in view.failures
    )
    return (
        f"<div class='batch' data-state='{'ended' if view.is_final else 'running'}'>"
        f"<div class='live-bar' role='progressbar' aria-label='Folder' aria-valuemin='0' aria-valuemax='100'"
        f" aria-valuenow='{percent}'><span style='width:{percent}%'></span></div>"
        f"<p class='live-line' role='status'><span>{words}</span><span>{place}</span></p>"
        + (f"<ul class='batch-failures'>{failures}</ul>" if failures else "")
        + "</div>"
    )


def _text(form: Form, name: str, label: str, placeholder: str, element: str) -> None:
    form.fields[name] = gr.Textbox(
        label=label, placeholder=placeholder, elem_id=f"{form.tab}_{element}", max_lines=1, lines=1
    )


def _wire_watching(page: gr.Blocks, services: Services, panel: FolderPanel) -> dict[str, Any]:
    """Lets the line follow the tab's folder; returns the event that does, which starts with the folder's id."""
    jobs = services.jobs
    stored = memory.browser_state(f"{panel.tab}.batch", "")

    def watch(batch_id: object) -> Iterator[str]:
        if not isinstance(batch_id, str) or jobs.batch(batch_id) is None:
            yield ""
            return
        yield from (batch_line(view) for view in jobs.watch_batch(batch_id))

    def end(batch_id: object) -> None:
        view = jobs.batch(batch_id) if isinstance(batch_id, str) else None
        if view is None or view.is_final:
            inform("No folder of this tab is being worked through.")
            return
        jobs.cancel_batch(view.id)

    watching: dict[str, Any] = {
        "fn": guarded(watch),
        "inputs": [stored],
        "outputs": [panel.line],
        "show_progress": "hidden",
        "concurrency_limit": None,
        "trigger_mode": "multiple",
    }
    page.load(**watching)
    panel.stop.click(guarded(end), inputs=[stored], outputs=None, show_progress="hidden", concurrency_limit=None)
    return watching


def _wire_start(
    services: Services,
    panel: FolderPanel,
    inputs: Sequence[Component],
    make_request: Callable[..., Request],
    watching: dict[str, Any],
) -> None:
    fields = panel.form.components
    named = [*fields, *([] if panel.own is None else [panel.own])]

    def begin(request: gr.Request, *values: Any) -> str:
        if not is_at_this_machine(request):
            raise NotAllowed(ELSEWHERE)
        own = tuple(values[len(fields)] or ()) if panel.own is not None else ()
        return services.jobs.submit_folder(
            make_request(*values[len(named) :]),
            folder_batch(panel.form.values(values[: len(fields)]), own),
            models=services.known_models(),
            session=request.session_hash or "",
        )

    on_click(panel.start, guarded(begin), inputs=[*named, *inputs], outputs=watching["inputs"]).success(**watching)


def folder_batch(values: dict[str, Any], own: tuple[str, ...]) -> FolderBatch:
    """What the fields ask for; raises `InvalidRequest` naming a field that is no whole path."""
    return FolderBatch(
        inputs=named_folder("folder of pictures", values.get("inputs")),
        outputs=named_folder("folder for the results", values.get("outputs")),
        masks=named_folder("folder of masks", values["masks"]) if values.get("masks") else None,
        own=own,
    )
