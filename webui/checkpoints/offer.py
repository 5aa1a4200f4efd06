"""The offer on the page to fetch one more upscaler: at most one attempt at a time, on a thread of its own.

It exists so that a download of minutes holds nobody up and survives a reload of the page. What fetching means is the
business of `webui.checkpoints.packaged`, who may ask for it that of the page.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path

from webui.checkpoints.packaged import PackagedUpscaler, install
from webui.core.errors import AtelierError
from webui.core.ports import OfferStatus

_log = logging.getLogger(__name__)

_HEARTBEAT_S = 5.0
_STOPS_WITHIN_S = 2.0


class PackagedOffer:
    """Implements `webui.core.ports.ModelOffer` for an upscaler that goes into `folder`."""

    def __init__(self, upscaler: PackagedUpscaler, folder: Path) -> None:
        self._upscaler = upscaler
        self._folder = folder
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._failure = ""

    @property
    def name(self) -> str:
        """What the menu calls the model once it is there."""
        return self._upscaler.name

    @property
    def title(self) -> str:
        """What people call it."""
        return self._upscaler.title

    @property
    def megabytes(self) -> int:
        """How much room it takes."""
        return self._upscaler.megabytes

    def status(self) -> OfferStatus:
        """How far it is now."""
        with self._changed:
            if self._thread is not None:
                return OfferStatus(phase="fetching", detail=f"Fetching {self.title}; go on working meanwhile.")
            if (self._folder / f"{self.name}.safetensors").is_file():
                return OfferStatus(phase="present", detail=f"{self.title} is in the menu.")
            if self._failure:
                return OfferStatus(phase="failed", detail=self._failure)
            return OfferStatus(phase="offered")

    def fetch(self) -> None:
        """Begins to fetch it, unless that is going on or done, or the server stops."""
        with self._changed:
            if self.status().phase in {"fetching", "present"} or self._stopping.is_set():
                return
            self._thread = threading.Thread(target=self._work, name="atelier-upscaler-offer", daemon=True)
            self._thread.start()

    def watch(self) -> Iterator[OfferStatus]:
        """How far it is now, then each change (and the same again every few seconds) until it is not being fetched."""
        status = self.status()
        yield status
        while status.phase == "fetching":
            with self._changed:
                self._changed.wait_for(lambda: self._thread is None, _HEARTBEAT_S)
            status = self.status()
            yield status

    def close(self) -> None:
        """Ends an attempt in hand; what it had is thrown away."""
        self._stopping.set()
        thread = self._thread
        if thread is not None:
            thread.join(_STOPS_WITHIN_S)

    def _work(self) -> None:
        failure = f"{self.title} could not be installed; the log has the details."
        try:
            install(self._upscaler, self._folder, stopping=self._stopping)
            failure = ""
        except AtelierError as error:
            failure = f"{self.title} was not installed: {error}"
            _log.warning("%s", failure)
        except Exception:
            _log.exception("Installing %s failed", self.title)
        finally:
            with self._changed:
                self._thread, self._failure = None, failure
                self._changed.notify_all()
