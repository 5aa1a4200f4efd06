"""Sentences for the person at the page, collected where no event can be sent, and sent where one can."""

from __future__ import annotations

from collections.abc import Iterator

from webui.core.events import Notice


class Notices:
    """What was said during one request; the same sentence is passed on once."""

    def __init__(self) -> None:
        self._said: set[str] = set()
        self._waiting: list[str] = []

    def say(self, *sentences: str) -> None:
        """Puts `sentences` with those that wait to be sent."""
        fresh = [sentence for sentence in dict.fromkeys(sentences) if sentence not in self._said]
        self._said.update(fresh)
        self._waiting += fresh

    def take(self) -> Iterator[Notice]:
        """What waits, each once."""
        while self._waiting:
            yield Notice(text=self._waiting.pop(0))
