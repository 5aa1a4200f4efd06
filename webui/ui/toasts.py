"""The page's one mapper of errors: what was raised on purpose becomes a toast, anything else a short one and the log.

A handler that raises changes no output, so a form keeps what was typed. Gradio shows toasts as HTML: texts are escaped.
"""

from __future__ import annotations

import functools
import html
import inspect
import logging
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from webui.core.errors import AtelierError

_log = logging.getLogger(__name__)


def warn(sentence: str) -> None:
    """Shows `sentence` as a toast; the handler goes on."""
    gr.Warning(html.escape(sentence), title="Note")


def inform(sentence: str) -> None:
    """Shows `sentence` as a quiet toast."""
    gr.Info(html.escape(sentence), title="Note", duration=5)


def guarded(handler: Callable[..., Any]) -> Callable[..., Any]:
    """`handler` (a function or a generator of a Gradio event) with its errors turned into toasts."""
    if inspect.isgeneratorfunction(handler):

        @functools.wraps(handler)
        def guarded_generator(*args: Any, **kwargs: Any) -> Iterator[Any]:
            try:
                yield from handler(*args, **kwargs)
            except Exception as error:
                raise _toast(error) from error

        return guarded_generator

    @functools.wraps(handler)
    def guarded_function(*args: Any, **kwargs: Any) -> Any:
        try:
            return handler(*args, **kwargs)
        except Exception as error:
            raise _toast(error) from error

    return guarded_function


def _toast(error: Exception) -> gr.Error:
    if isinstance(error, gr.Error):
        return error
    if isinstance(error, AtelierError):
        return gr.Error(html.escape(str(error)), title="That did not work", print_exception=False)
    _log.error("A handler of the page failed", exc_info=error)
    words = f"Something unexpected went wrong ({type(error).__name__}); the log has the details."
    return gr.Error(html.escape(words), title="Unexpected error", print_exception=False)
