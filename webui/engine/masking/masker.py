"""The port `webui.core.ports.Masker` over the engine's workshop. Imports no torch; that begins with the first mask."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from PIL import Image

from webui.core.errors import InvalidRequest

if TYPE_CHECKING:
    from webui.checkpoints.scan import CheckpointFolder
    from webui.engine.workshop import Workshop


class EngineMasker:
    """Masks by the models of `folder`. `borrow` gives the workshop to one thread at a time: see `EngineManager`."""

    def __init__(self, folder: CheckpointFolder, borrow: Callable[[], AbstractContextManager[Workshop]]) -> None:
        self._folder = folder
        self._borrow = borrow

    def by_prompt(self, image: Image.Image, words: str) -> Image.Image:
        """Black and white: what `words` name in `image`; see the port."""
        things = [thing for part in words.split(",") if (thing := part.strip())]
        if not things:
            raise InvalidRequest("There are no words to mask by; name what you mean, such as “hat, scarf”.")
        path = self._folder.maskers.for_words()
        with self._borrow() as workshop:
            return workshop.word_masker(path).mask(image, things)

    def foreground(self, image: Image.Image) -> Image.Image:
        """How much each place of `image` belongs to the foreground; see the port."""
        path = self._folder.maskers.for_foreground()
        with self._borrow() as workshop:
            return workshop.foreground_finder(path).mask(image)
