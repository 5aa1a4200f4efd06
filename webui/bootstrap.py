"""The one place that builds and wires objects. It decides which parts there are, never what they do.

The page's server imports this module before gradio and torch, so what is slow is imported where it is first needed:
gradio in `build`, torch and the engine in the worker's thread (`webui.engine.manager`).
"""

from __future__ import annotations

import functools
import gc
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

from webui.core.infotext import KnownModels
from webui.core.paths import Folders
from webui.core.ports import Engine, Masker, ModelCatalogue
from webui.server.options import ServerOptions

if TYPE_CHECKING:
    from sqlalchemy import Engine as Database

    from webui.checkpoints.offer import PackagedOffer
    from webui.jobs.service import Jobs
    from webui.server.page import PageApplication
    from webui.settings.schema import Settings
    from webui.ui.services import Services

logger = logging.getLogger(__name__)

WORKER_STOPS_WITHIN_S = 15.0  # less than launch.py waits for the server


@dataclass(frozen=True, slots=True, kw_only=True)
class App:
    """The whole program, built and not yet running; a context manager that closes it.

    Serve `page.asgi`, and call `start` once the page can be reached: from then on the worker's thread loads the engine
    and runs jobs.
    """

    services: Services
    page: PageApplication
    jobs: Jobs
    offer: PackagedOffer
    database: Database

    def start(self) -> None:
        """Starts the worker, which takes up what an earlier server left."""
        self.jobs.start()

    def close(self) -> None:
        """Stops the worker after its current step, leaving the running job to the next start."""
        self.offer.close()
        self.jobs.close(timeout_s=WORKER_STOPS_WITHIN_S)
        self.database.dispose()

    def __enter__(self) -> App:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRoom:
    """The models folder and the engine over it, as everything else sees them; `masker` makes masks with both.

    `known_models` says which files a pasted infotext may name.
    """

    catalogue: ModelCatalogue
    engine: Engine
    masker: Masker
    known_models: Callable[[], KnownModels] = KnownModels


def build(folders: Folders, options: ServerOptions) -> App:
    """Builds the program over folders that `webui.server.folders.prepare` has made ready. Raises `AtelierError`."""
    keep_to_ourselves(folders)
    with _made_to_stay():
        return _build(folders, options)


@contextmanager
def _made_to_stay() -> Iterator[None]:
    """Looks for no garbage meanwhile, and never again among what is made: gradio and the page stay to the end.

    They are 240,000 objects, which Python would go through dozens of times while they are made (a tenth of the start
    and more), and again, with every thread waiting, now and then while pictures are made.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _build(folders: Folders, options: ServerOptions) -> App:
    from webui.api.internal import internal_router
    from webui.checkpoints.offer import PackagedOffer
    from webui.checkpoints.packaged import X4PLUS
    from webui.checkpoints.scan import UPSCALER_FOLDERS
    from webui.checkpoints.tokenizer import ClipTokenizer
    from webui.core.prompt.counting import count_tokens
    from webui.database.opening import open_database
    from webui.extensions.host import ExtensionHost
    from webui.gallery.files import ImageFiles
    from webui.jobs.service import Jobs
    from webui.server.page import PageApplication
    from webui.settings.store import SettingsStore
    from webui.ui.page import build_page, page_style
    from webui.ui.services import Services

    store = SettingsStore(folders.settings_file)
    if store.notice:
        logger.warning(store.notice)
    settings = overridden(lambda: store.current, **options.settings)
    database = open_database(folders.database)
    room = build_engine(folders, settings, database)
    files = ImageFiles(folders.outputs, lambda: settings().filename_pattern)
    extensions = ExtensionHost(folders.extensions, store)
    extensions.load()
    jobs = Jobs(
        database=database,
        engine=room.engine,
        catalogue=room.catalogue,
        files=files,
        hooks=extensions,
        settings=settings,
    )
    offer = PackagedOffer(X4PLUS, folders.models / UPSCALER_FOLDERS[0])
    services = Services(
        jobs=jobs,
        catalogue=room.catalogue,
        known_models=room.known_models,
        masker=room.masker,
        files=files,
        settings=store,
        extensions=extensions,
        upscaler_offer=offer,
        engine_status=room.engine.status,
        count_tokens=functools.partial(count_tokens, tokenizer=ClipTokenizer()),
        folders=folders,
    )
    page = PageApplication(
        build_page(services),
        style=page_style(),
        routers=[internal_router(room.engine.status)],
        pictures=folders.outputs,
        accounts=options.accounts,
        loopback_only=options.loopback_only,
    )
    return App(services=services, page=page, jobs=jobs, offer=offer, database=database)


def build_engine(folders: Folders, settings: Callable[[], Settings], database: Database | None = None) -> EngineRoom:
    """The catalogue of models and the engine; torch is not loaded yet. Raises `UserError` without a models folder.

    With a `database`, the hashes of models are kept there.
    """
    from webui.checkpoints.hash import ModelHashes
    from webui.checkpoints.known import KnownFiles
    from webui.checkpoints.scan import CheckpointFolder
    from webui.database.hashes import HashTable
    from webui.engine.manager import EngineManager
    from webui.engine.masking import EngineMasker

    catalogue = CheckpointFolder(
        folders.models, preferred=lambda: settings().checkpoint, conversions=folders.conversions
    )
    hashes = ModelHashes(None if database is None else HashTable(database))
    engine = EngineManager(catalogue, settings, hashes, folders.attention_choices)
    masker = EngineMasker(catalogue, engine.borrowed)
    return EngineRoom(catalogue=catalogue, engine=engine, masker=masker, known_models=KnownFiles(catalogue, hashes))


def overridden(current: Callable[[], Settings], **flags: Any) -> Callable[[], Settings]:
    """The settings as `flags` change them, by the settings' names, without storing that; what is empty changes none."""
    given = {name: value for name, value in flags.items() if value}

    def settings() -> Settings:
        return current().model_copy(update=given)

    return settings


def keep_to_ourselves(folders: Folders) -> None:
    """Tells libraries, before they are imported, to send nothing out and to cache below the data folder."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(folders.page_cache)
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
