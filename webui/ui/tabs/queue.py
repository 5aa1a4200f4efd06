"""queue: the running job, what waits behind it, and the pictures that were made last."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr

from webui.core.requests import Upscale
from webui.jobs.views import ImageView, JobState, JobView
from webui.ui import pictures
from webui.ui.components.live_panel import duration
from webui.ui.components.parameters import parameters_html
from webui.ui.services import Services
from webui.ui.toasts import guarded

_RECENT_JOBS = 24
_REFRESH_S = 1.5

# The table is one piece of HTML; a click on one of its buttons becomes this component's click event with the job's id.
_CANCEL_SCRIPT = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-cancel]');
  if (button) trigger('click', {job: button.dataset.cancel});
});
"""


def queue_table(views: Sequence[JobView]) -> str:
    """The running and waiting jobs as an HTML table. Pure; everything escaped."""
    if not views:
        return "<p class='note'>Nothing is running and nothing waits.</p>"
    rows = "".join(_row(view, more) for view, more in _folders_folded(views))
    head = "<tr><th scope='col'>State</th><th scope='col'>Task</th><th scope='col'>What</th><td></td></tr>"
    return f"<table class='queue-table'><thead>{head}</thead><tbody>{rows}</tbody></table>"


def _folders_folded(views: Sequence[JobView]) -> Iterator[tuple[JobView, int]]:
    """Each view with 0; of the waiting files of a folder only the first, with the number of those behind it."""
    waiting = Counter(view.batch for view in views if _waits_in_folder(view))
    told: set[str] = set()
    for view in views:
        if not _waits_in_folder(view):
            yield view, 0
        elif view.batch not in told:
            told.add(view.batch)
            yield view, waiting[view.batch] - 1


def _waits_in_folder(view: JobView) -> bool:
    return bool(view.batch) and view.state is JobState.QUEUED


def _row(view: JobView, more: int) -> str:
    request = view.request
    what = f"{request.upscaler}, ×{request.scale:g}" if isinstance(request, Upscale) else request.prompt or "no prompt"
    if view.file is not None:
        what = f"{view.file.source.name}{f' and {more} more of its folder' if more else ''}: {what}"
    state = f"waiting, {view.position} ahead" if view.state is JobState.QUEUED else view.state.value
    if view.state is JobState.RUNNING and view.progress is not None and view.progress.total_steps:
        state += f", {round(100 * view.progress.step / view.progress.total_steps)} %"
        if view.progress.eta_s is not None:
            state += f", {duration(view.progress.eta_s)} left"
    label = "Interrupt" if view.state is JobState.RUNNING else "Stop folder" if view.batch else "Remove"
    return (
        f"<tr data-job='{html.escape(view.id, quote=True)}'><td>{state}</td><td>{html.escape(view.task)}</td>"
        f"<td class='queue-prompt'>{html.escape(what[:200])}</td>"
        f"<td><button type='button' data-cancel='{html.escape(view.id, quote=True)}'>{label}</button></td></tr>"
    )


def recent_images(views: Sequence[JobView]) -> list[ImageView]:
    """The pictures of `views` (newest job first) whose files are still there, newest job first."""
    return [image for view in views for image in view.images if image.path.is_file()]


def build_queue(services: Services, tab: gr.Tab) -> gr.Timer:
    """Fills the tab; returns the timer that keeps it fresh, which is only active while the tab is open."""
    jobs = services.jobs
    timer = gr.Timer(_REFRESH_S, active=False)
    gr.HTML("<h2>Queue</h2>")
    table = gr.HTML(queue_table([]), js_on_load=_CANCEL_SCRIPT, elem_id="queue_table")
    gr.HTML("<h2>Recent pictures</h2>")
    gallery = gr.Gallery(
        show_label=False,
        elem_id="queue_gallery",
        columns=6,
        object_fit="cover",
        height="auto",
        interactive=False,
        elem_classes="recent",
    )
    parameters = gr.HTML("", elem_id="html_info_queue", elem_classes="parameters-holder")
    listed = gr.State([])

    def refresh(known: list[str]) -> list[Any]:
        images = recent_images(jobs.recent(_RECENT_JOBS))
        paths = [str(image.path) for image in images]
        waiting = queue_table(jobs.queue())
        if paths == known:
            return [waiting, gr.skip(), gr.skip(), gr.skip()]
        return [waiting, [pictures.shown(image.path) for image in images], paths, [image.infotext for image in images]]

    def cancel(event: gr.EventData) -> str:
        view = jobs.view(str(event.job))
        if view is not None and _waits_in_folder(view):
            jobs.cancel_batch(view.batch)
        elif view is not None:
            jobs.cancel(view.id)
        return queue_table(jobs.queue())

    infotexts = gr.State([])

    def select(texts: list[str], event: gr.SelectData) -> str:
        return parameters_html(texts[event.index]) if event.index < len(texts) else ""

    fresh: dict[str, Any] = {"inputs": [listed], "outputs": [table, gallery, listed, infotexts]}
    timer.tick(guarded(refresh), **fresh, show_progress="hidden", concurrency_limit=None)
    tab.select(guarded(refresh), **fresh, show_progress="hidden", concurrency_limit=None)
    table.click(guarded(cancel), outputs=[table], show_progress="hidden")
    gallery.select(guarded(select), inputs=[infotexts], outputs=[parameters], show_progress="hidden")
    return timer
