"""What the page needs from the rest of the program, handed over by `webui.bootstrap` in one piece."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from webui.core.infotext import KnownModels
from webui.core.ports import EngineStatus, Masker, ModelCatalogue, ModelOffer
from webui.core.prompt.counting import TokenCount

if TYPE_CHECKING:
    from webui.core.paths import Folders
    from webui.extensions.host import ExtensionHost
    from webui.gallery.files import ImageFiles
    from webui.jobs.service import Jobs
    from webui.settings.store import SettingsStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """The rooms that the page talks to. All of them may be called from any thread."""

    jobs: Jobs
    catalogue: ModelCatalogue
    known_models: Callable[[], KnownModels]
    masker: Masker
    files: ImageFiles
    settings: SettingsStore
    extensions: ExtensionHost
    upscaler_offer: ModelOffer
    engine_status: Callable[[], EngineStatus]
    count_tokens: Callable[[str], TokenCount]
    folders: Folders
