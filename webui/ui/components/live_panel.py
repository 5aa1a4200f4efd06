"""The live panel and the parameters below a picture, as HTML. Pure: a `JobView` in, escaped text out.

The panel's `data-state` and `data-images` attributes are what assets/atelier.css looks at to show the stage, the
gallery and the Interrupt and Skip buttons, so that no event has to switch them one by one.
"""

from __future__ import annotations

import base64
import html

from webui.core.requests import Request, Upscale
from webui.jobs.views import JobState, JobView, Progress

_EMPTY_HINT = "Your picture appears here. <span class='hint-keys'><kbd>Ctrl</kbd> <kbd>Enter</kbd> starts it.</span>"


def live_panel(view: JobView | None, *, waiting: int = 0) -> str:
    """The panel for `view` (None: nothing was asked for yet) with `waiting` more jobs of this tab behind it."""
    if view is None:
        return _panel("empty", 0, _stage(f"<p class='stage-hint'>{_EMPTY_HINT}</p>", ""))
    state = view.state
    shape = _shape(view.request)
    if state is JobState.QUEUED:
        ahead = view.position
        words = "Next in line" if ahead < 1 else "One job is ahead" if ahead == 1 else f"{ahead} jobs are ahead"
        return _panel(state, 0, _stage(f"<p class='stage-hint pulse'>{words} …</p>", shape))
    if state is JobState.RUNNING:
        return _panel(state, len(view.images), _running(view.progress, shape, waiting) + _notices(view))
    if state is JobState.FAILED:
        sentence = html.escape(view.error or "The job failed; the log has the details.")
        return _panel(state, len(view.images), f"<p class='live-error' role='alert'>{sentence}</p>" + _notices(view))
    total = len(view.images)
    words = "Interrupted" if state is JobState.CANCELLED else "Done"
    pictures = "no picture" if total == 0 else "1 picture" if total == 1 else f"{total} pictures"
    # A finished picture speaks for itself: then the line is for screen readers alone.
    quiet = " only-read-aloud" if total and state is JobState.FINISHED else ""
    line = f"<p class='live-line{quiet}' role='status'><span>{words} · {pictures}</span></p>"
    stage = "" if total else _stage("<p class='stage-hint'>There is no picture.</p>", shape)
    return _panel(state, total, stage + line + _notices(view))


def _notices(view: JobView) -> str:
    return "".join(f"<p class='live-notice' role='status'>{html.escape(notice)}</p>" for notice in view.notices)


def _panel(state: str, images: int, inside: str) -> str:
    return f"<div class='live' data-state='{state}' data-images='{images}'>{inside}</div>"


def _stage(inside: str, shape: str) -> str:
    return f"<div class='stage'{shape}>{inside}</div>"


def _shape(request: Request) -> str:
    if isinstance(request, Upscale):
        return ""
    return f" style='--picture-ratio: {request.width} / {request.height}'"


def _running(progress: Progress | None, shape: str, waiting: int) -> str:
    if progress is None or progress.total_steps <= 0:
        return _stage("<p class='stage-hint pulse'>Getting ready …</p>", shape) + _bar(0.0, "Getting ready", "")
    share = min(1.0, progress.step / progress.total_steps)
    unit = "Tile" if shape == "" else "Step"
    words = f"{unit} {progress.step} of {progress.total_steps}"
    if progress.total_images > 1:
        words += f" · picture {min(progress.image + 1, progress.total_images)} of {progress.total_images}"
    if waiting:
        words += f" · {waiting} more waiting"
    left = "" if progress.eta_s is None else f"{duration(progress.eta_s)} left"
    if progress.preview is None:
        inside = "<p class='stage-hint pulse'>The first strokes …</p>"
    else:
        data = base64.b64encode(progress.preview).decode("ascii")
        # Decoding at once keeps the stage from blinking white between two previews.
        inside = (
            f"<img class='preview' decoding='sync' alt='The forming picture, step {progress.step}'"
            f" data-preview='{progress.preview_number}' src='data:image/jpeg;base64,{data}'>"
        )
    return _stage(inside, shape) + _bar(share, words, left)


def _bar(share: float, words: str, left: str) -> str:
    percent = round(share * 100)
    return (
        f"<div class='live-bar' role='progressbar' aria-label='Progress' aria-valuemin='0' aria-valuemax='100'"
        f" aria-valuenow='{percent}'><span style='width:{percent}%'></span></div>"
        f"<p class='live-line'><span>{words}</span><span>{left}</span></p>"
    )


def duration(seconds: float) -> str:
    """`seconds` as people say it: "3 s", "2 min 05 s", "1 h 10 min"."""
    rounded = max(0, round(seconds))
    if rounded < 60:
        return f"{rounded} s"
    minutes, rest = divmod(rounded, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"
