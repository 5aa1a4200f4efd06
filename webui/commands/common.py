"""What several commands share: the flags for folders and engine, the log, and the engine itself."""

from __future__ import annotations

import argparse
import contextlib
import logging
import logging.handlers
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from webui.core.catalogue import PRECISIONS, WEIGHT_FORMATS
from webui.core.errors import AtelierError, DiskFull
from webui.core.paths import REPOSITORY, Folders

if TYPE_CHECKING:
    from sqlalchemy import Engine as Database

    from webui.bootstrap import EngineRoom
    from webui.settings.schema import Settings

logger = logging.getLogger(__name__)

LOG_BYTES = 5 * 2**20


def add_folders(parser: argparse.ArgumentParser, *, nested: bool = False) -> None:
    """What every command takes. A nested parser keeps quiet about defaults, or it would undo flags given before it."""

    def default(value: Any) -> Any:
        return argparse.SUPPRESS if nested else value

    group = parser.add_argument_group("folders and engine")
    group.add_argument("--root", type=Path, default=default(REPOSITORY), help="where the folders below lie by default")
    for name in ("models", "output", "data", "extensions"):
        group.add_argument(f"--{name}-dir", type=Path, default=default(None), metavar="FOLDER")
    group.add_argument("--attention", default=default(""), metavar="NAME", help="backend, instead of the fastest")
    memory = group.add_mutually_exclusive_group()
    for name, kept in (("medvram", "only what is at work"), ("lowvram", "only a few layers of what is at work")):
        memory.add_argument(
            f"--{name}",
            dest="video_memory_use",
            action="store_const",
            const=name,
            default=default(""),
            help=f"keep {kept} in video memory",
        )
    group.add_argument(
        "--gpu-memory",
        dest="video_memory_gib",
        type=_gibibytes,
        default=default(0.0),
        metavar="4GB",
        help="the most video memory to take",
    )
    group.add_argument(
        "--precision",
        default=default(""),
        choices=PRECISIONS,
        help="what networks compute in (auto: the fastest that the device is made for)",
    )
    group.add_argument(
        "--weights",
        default=default(""),
        choices=WEIGHT_FORMATS,
        help="how weights of the network and of T5 lie in memory: as they compute, GGUF's as in their file (full), or"
        " in fewer bits",
    )
    group.add_argument("--log-level", default=default("info"), choices=("debug", "info", "warning", "error"))


def _gibibytes(text: str) -> float:
    number = text.upper().removesuffix("B").removesuffix("I").removesuffix("G")
    with contextlib.suppress(ValueError):
        if 0 < float(number) < math.inf:
            return float(number)
    raise argparse.ArgumentTypeError(f"{text!r} is no amount of memory; give one in gibibytes, such as 4GB")


def engine_flags(chosen: argparse.Namespace) -> dict[str, Any]:
    """The flags that stand for settings of the engine, by the settings' names; what is empty was not given."""
    names = ("attention", "video_memory_use", "video_memory_gib", "precision", "weights")
    return {name: getattr(chosen, name) for name in names}


def folders_from(chosen: argparse.Namespace) -> Folders:
    """The folders that the flags name."""
    return Folders.at(
        chosen.root,
        models=chosen.models_dir,
        outputs=chosen.output_dir,
        data=chosen.data_dir,
        extensions=chosen.extensions_dir,
    )


def set_up_logging(level: str, folders: Folders | None = None) -> None:
    """Our log goes to standard error and, when serving, to data/logs; libraries speak up only to warn."""
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if folders is not None:
        file = folders.data / "logs" / "atelier.log"
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            handlers.append(logging.handlers.RotatingFileHandler(file, maxBytes=LOG_BYTES, backupCount=3))
        except OSError as error:
            raise DiskFull(f"The log {file} cannot be written: {error.strerror}; choose another --data-dir.") from error
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s", handlers=handlers
    )
    logging.getLogger("webui").setLevel(level.upper())


@dataclass(frozen=True, slots=True)
class Room:
    """The engine and its models for one command, and the settings they go by; `say` prints a line of the answer."""

    engine_room: EngineRoom
    settings: Settings
    say: Callable[[str], None]


@contextlib.contextmanager
def opened_settings(
    chosen: argparse.Namespace,
) -> Iterator[tuple[Folders, Callable[[], Settings], Callable[[str], None]]]:
    """The folders, the settings as the flags change them, and what prints a line of the command's answer.

    Within the block standard output is for those lines alone: whatever libraries print goes to standard error.
    """
    from webui import bootstrap
    from webui.settings.store import SettingsStore

    set_up_logging(chosen.log_level)
    folders = folders_from(chosen)
    answers = sys.stdout

    def say(line: str) -> None:
        print(line, file=answers, flush=True)

    with contextlib.redirect_stdout(sys.stderr):
        bootstrap.keep_to_ourselves(folders)
        store = SettingsStore(folders.settings_file)
        yield folders, bootstrap.overridden(lambda: store.current, **engine_flags(chosen)), say


@contextlib.contextmanager
def opened_room(chosen: argparse.Namespace) -> Iterator[Room]:
    """The engine that the flags ask for, and the rest as `opened_settings`; raises `UserError` without models."""
    from webui import bootstrap

    with opened_settings(chosen) as (folders, settings, say), _hashes(folders) as database:
        yield Room(bootstrap.build_engine(folders, settings, database), settings(), say)


@contextlib.contextmanager
def _hashes(folders: Folders) -> Iterator[Database | None]:
    """The database, which keeps the hashes of models, or None where it cannot be opened: they are made anew then."""
    from webui.database.opening import open_database

    try:
        database = open_database(folders.database)
    except AtelierError as error:
        logger.warning("Hashes of models are made anew: %s", error)
        yield None
        return
    try:
        yield database
    finally:
        database.dispose()
