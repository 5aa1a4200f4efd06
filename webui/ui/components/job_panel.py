"""What every tab that makes pictures has: Generate, Interrupt and Skip, the live panel, the pictures, their parameters.

The tab's job ids live in the browser; the same generator that follows a fresh job re-attaches to one after a reload.
Nothing here knows how a request is made from a form: the tab hands that over as a function.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import gradio as gr
from gradio.components import Component

from webui.core.requests import Request
from webui.jobs.views import ImageView, JobView
from webui.ui import memory, pictures
from webui.ui.components.canvas import with_canvas
from webui.ui.components.live_panel import live_panel
from webui.ui.components.parameters import parameters_html
from webui.ui.components.status_line import status_line
from webui.ui.components.together import on_click
from webui.ui.services import Services
from webui.ui.toasts import guarded, inform

if TYPE_CHECKING:
    from webui.jobs.service import Jobs

NO_ACTIONS: Mapping[str, str] = MappingProxyType({})

SEND_TARGETS = {"img2img": "img2img", "inpaint": "Inpaint", "upscale": "Upscale"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunButtons:
    """The buttons that start and stop."""

    generate: gr.Button
    interrupt: gr.Button
    skip: gr.Button


def add_run_buttons(tab: str, words: str = "Generate") -> RunButtons:
    """Generate, Interrupt and Skip; the latter two fade in while a job runs (assets/atelier.css)."""
    with gr.Row(elem_classes="run-buttons"):
        generate = gr.Button(words, variant="primary", elem_id=f"{tab}_generate", elem_classes="generate", scale=3)
        interrupt = gr.Button("Interrupt", elem_id=f"{tab}_interrupt", elem_classes="stopping", scale=1, min_width=80)
        skip = gr.Button("Skip", elem_id=f"{tab}_skip", elem_classes=["stopping", "skip"], scale=1, min_width=60)
    return RunButtons(generate=generate, interrupt=interrupt, skip=skip)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultPanel:
    """Where a job shows; `shown` says which picture is looked at: {"job": id, "index": n}, or None."""

    live: gr.HTML
    display: Component
    display_value: Callable[[JobView], Any]
    parameters: gr.HTML
    shown: gr.State
    sends: dict[str, gr.Button]
    actions: dict[str, gr.Button]

    @property
    def outputs(self) -> list[Component]:
        """What `updates` fills, in its order."""
        return [self.live, self.display, self.parameters, self.shown]

    def updates(self, view: JobView | None, waiting: int, *, pictures_changed: bool) -> list[Any]:
        """The panel for `view`; the pictures are only sent again when there are new ones."""
        panel = live_panel(view, waiting=waiting)
        if not pictures_changed:
            return [panel, gr.skip(), gr.skip(), gr.skip()]
        if view is None or not view.images:
            return [panel, gr.skip(), "", None]
        return [
            panel,
            self.display_value(view),
            parameters_html(view.images[0].infotext),
            {"job": view.id, "index": 0},
        ]


def gallery_value(view: JobView) -> gr.Gallery:
    """A gallery's update for a job's pictures; once the job has ended the first one is shown large."""
    shown_pictures = [pictures.shown(image.path) for image in view.images]
    return gr.Gallery(value=shown_pictures, selected_index=0 if view.state.is_final else None)


def add_gallery(tab: str) -> gr.Gallery:
    """The gallery of a tab's pictures."""
    return gr.Gallery(
        label="Pictures",
        show_label=False,
        elem_id=f"{tab}_gallery",
        elem_classes="results",
        object_fit="contain",
        height="auto",
        interactive=False,
        buttons=["download", "fullscreen"],
    )


def add_result_panel(
    tab: str,
    display: Callable[[str], Component] = add_gallery,
    display_value: Callable[[JobView], Any] = gallery_value,
    actions: Mapping[str, str] = NO_ACTIONS,
) -> ResultPanel:
    """The live panel, the pictures, the buttons that do something with one or send it elsewhere, and its parameters.

    `actions` are the words of the former, by the ends of their element ids.
    """
    live = gr.HTML(live_panel(None), elem_id=f"{tab}_live", elem_classes="live-holder")
    shown_pictures = display(tab)
    with gr.Row(elem_classes="send-buttons"):
        acting = {
            name: gr.Button(words, size="sm", elem_id=f"{tab}_{name}", elem_classes="send", min_width=90)
            for name, words in actions.items()
        }
        sends = {
            target: gr.Button(
                f"Send to {words}", size="sm", elem_id=f"{tab}_send_to_{target}", elem_classes="send", min_width=90
            )
            for target, words in SEND_TARGETS.items()
            if target != tab or tab != "upscale"
        }
    parameters = gr.HTML("", elem_id=f"html_info_{tab}", elem_classes="parameters-holder")
    return ResultPanel(
        live=live,
        display=shown_pictures,
        display_value=display_value,
        parameters=parameters,
        shown=gr.State(None),
        sends=sends,
        actions=acting,
    )


def follow(jobs: Jobs, ids: Sequence[str]) -> Iterator[tuple[JobView | None, int]]:
    """Views of the unfinished jobs among `ids`, one job after the other, or of the last one when all have ended.

    Each view comes with the number of jobs of `ids` that wait behind it. Ids that the database does not know any more
    are passed over; (None, 0) says that there is nothing to show.
    """
    known = [view for job_id in ids if (view := jobs.view(job_id)) is not None]
    unfinished = [view for view in known if not view.state.is_final] or known[-1:]
    if not unfinished:
        yield None, 0
    for place, first in enumerate(unfinished):
        for view in jobs.watch(first.id):
            yield view, len(unfinished) - place - 1


def shown_image(jobs: Jobs, shown: object) -> ImageView | None:
    """The `ImageView` that a panel's `shown` state points at, or None."""
    if not isinstance(shown, dict):
        return None
    view = jobs.view(str(shown.get("job")))
    index = shown.get("index")
    if view is None or not isinstance(index, int) or not 0 <= index < len(view.images):
        return None
    return view.images[index]


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A button that starts jobs: `make` gets the values of `inputs`, unprocessed, and returns what to do."""

    button: gr.Button
    inputs: Sequence[Component]
    make: Callable[..., Request | Sequence[Request]]


def wire_job_panel(
    page: gr.Blocks,
    services: Services,
    *,
    tab: str,
    run: RunButtons,
    result: ResultPanel,
    status: gr.HTML,
    inputs: Sequence[Component],
    make_request: Callable[..., Request | Sequence[Request]],
    canvas: gr.HTML | None = None,
    also: Sequence[Start] = (),
) -> gr.BrowserState:
    """Connects buttons, jobs and panel; returns the browser's memory of the tab's jobs.

    `make_request` gets the values of `inputs`. They come unprocessed so that Gradio's own checks do not stand before
    ours. Where `canvas` is among them, what is drawn on it is uploaded first. `also` are more buttons that start jobs
    of the tab.
    """
    jobs = services.jobs
    ids_memory = memory.browser_state(f"{tab}.jobs", [])

    watchers = Watchers()

    def watch(request: gr.Request, stored: object) -> Iterator[list[Any]]:
        rows = watch_updates(services, result, memory.job_ids(stored))
        yield from watchers.newest_only(request.session_hash or "", rows)

    watching: dict[str, Any] = {
        "fn": guarded(watch),
        "inputs": [ids_memory],
        "outputs": [*result.outputs, status],
        "show_progress": "hidden",
        "concurrency_limit": None,
        "trigger_mode": "multiple",
    }
    page.load(**watching)
    for start in (Start(button=run.generate, inputs=inputs, make=make_request), *also):
        asked = [ids_memory, *start.inputs]
        drawn = {} if canvas is None else {"js": with_canvas(canvas, asked)}
        on_click(
            start.button, guarded(_submitter(jobs, start.make)), inputs=asked, outputs=[ids_memory], **drawn
        ).success(**watching)
    _wire_stopping(jobs, run, ids_memory)
    _wire_selection(jobs, result)
    return ids_memory


def _submitter(jobs: Jobs, make: Callable[..., Request | Sequence[Request]]) -> Callable[..., list[str]]:
    """The handler that queues what `make` makes of a form; returns the tab's job ids that are still of interest."""

    def submit(request: gr.Request, stored: object, *values: Any) -> list[str]:
        made = make(*values)
        ids = [
            jobs.submit(one, session=request.session_hash or "")
            for one in (made if isinstance(made, Sequence) else [made])
        ]
        waiting = [
            old for old in memory.job_ids(stored) if (view := jobs.view(old)) is not None and not view.state.is_final
        ]
        return [*waiting, *ids]

    return submit


class Watchers:
    """Lets a newer watcher of the same page take the panel over. Thread-safe; holds nothing once watchers have ended.

    The newer one follows every job that has not ended, so the older one may leave without anything being missed.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._newest: dict[str, object] = {}

    def newest_only(self, session: str, rows: Iterator[list[Any]]) -> Iterator[list[Any]]:
        """`rows` until another watcher of `session` begins."""
        me = object()
        with self._lock:
            self._newest[session] = me
        try:
            for row in rows:
                if self._newest.get(session) is not me:
                    return
                yield row
        finally:
            with self._lock:
                if self._newest.get(session) is me:
                    del self._newest[session]


def watch_updates(services: Services, result: ResultPanel, ids: Sequence[str]) -> Iterator[list[Any]]:
    """Rows for `result.outputs` and the status line while the jobs `ids` run."""
    seen: tuple[str, int, bool] | None = None
    for view, waiting in follow(services.jobs, ids):
        ended = view is None or view.state.is_final
        now = ("", 0, ended) if view is None else (view.id, len(view.images), ended)
        line = status_line(services.engine_status()) if seen is None or ended else gr.skip()
        yield [*result.updates(view, waiting, pictures_changed=now != seen), line]
        seen = now


def restore_picture(
    page: gr.Blocks,
    services: Services,
    ids_memory: gr.BrowserState,
    picture: Component,
    value: Callable[[Request], Any],
) -> None:
    """Puts the picture that the tab's last job started from back into `picture` when the page loads."""

    def restore(stored: object) -> Any:
        ids = memory.job_ids(stored)
        view = services.jobs.view(ids[-1]) if ids else None
        found = None if view is None else value(view.request)
        return gr.skip() if found is None else found

    page.load(guarded(restore), inputs=[ids_memory], outputs=[picture], show_progress="hidden", queue=False)


def _wire_stopping(jobs: Jobs, run: RunButtons, ids_memory: gr.BrowserState) -> None:
    def stop(stored: object, act: Callable[[str], None]) -> None:
        for job_id in memory.job_ids(stored):
            view = jobs.view(job_id)
            if view is not None and not view.state.is_final:
                act(job_id)
                return
        inform("Nothing of this tab is running.")

    for button, act in ((run.interrupt, jobs.cancel), (run.skip, jobs.skip)):
        handler = guarded(lambda stored, act=act: stop(stored, act))
        button.click(handler, inputs=[ids_memory], outputs=None, show_progress="hidden", concurrency_limit=None)


def _wire_selection(jobs: Jobs, result: ResultPanel) -> None:
    if not isinstance(result.display, gr.Gallery):
        return

    def select(shown: object, event: gr.SelectData) -> list[Any]:
        if not isinstance(shown, dict):
            return [gr.skip(), gr.skip()]
        selected = {**shown, "index": event.index}
        image = shown_image(jobs, selected)
        return [gr.skip(), gr.skip()] if image is None else [selected, parameters_html(image.infotext)]

    result.display.select(
        guarded(select), inputs=[result.shown], outputs=[result.shown, result.parameters], show_progress="hidden"
    )
