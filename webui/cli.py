"""The command line: flags to values, values to `webui.bootstrap`, errors to one sentence and an exit code.

Exit codes: 0 done, 1 nothing found (infotext, inspect), 2 it cannot be done as asked, 130 Ctrl-C. Nothing slow is
imported before the flags have been read.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import logging.handlers
import os
import sys
import threading
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from webui import __version__
from webui.core.catalogue import SAMPLERS, SCHEDULE_TYPES
from webui.core.errors import AtelierError, DiskFull
from webui.core.paths import REPOSITORY, Folders

if TYPE_CHECKING:
    from webui.bootstrap import App
    from webui.server.options import ServerOptions

logger = logging.getLogger(__name__)

LOG_BYTES = 5 * 2**20


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command that `arguments` (default: the process's) ask for; returns the exit code."""
    chosen = make_parser().parse_args(arguments)
    try:
        return chosen.run(chosen)
    except AtelierError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def leave(code: int) -> NoReturn:
    """Ends the process with `code`, whatever other threads are in the middle of.

    A worker that is still importing torch cannot be waited for, and torch's libraries abort the process when the
    interpreter is taken down under them. Everything that must be kept has been written by now.
    """
    if threading.active_count() > 1:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


# --- flags ---------------------------------------------------------------------------------------------------------


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands; without a command it serves."""
    parser = argparse.ArgumentParser(
        prog="python -m webui", description="Atelier, a browser studio for Stable Diffusion.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"Atelier {__version__}")
    parser.set_defaults(run=run_server)
    _add_common(parser)
    _add_serving(parser)
    commands = parser.add_subparsers(title="commands (none: serve the page)", metavar="COMMAND")
    _add_generate(commands)
    infotext = commands.add_parser("infotext", help="print the parameters inside an image as JSON", allow_abbrev=False)
    infotext.add_argument("file", type=Path, metavar="FILE")
    infotext.set_defaults(run=run_infotext)
    inspect = commands.add_parser(
        "inspect", help="say what model files are, as one line of JSON each", allow_abbrev=False
    )
    inspect.add_argument("paths", type=Path, nargs="+", metavar="FILE|FOLDER")
    inspect.set_defaults(run=run_inspect)
    convert = commands.add_parser("convert", help="write a pickled model as safetensors", allow_abbrev=False)
    convert.add_argument("file", type=Path, metavar="FILE")
    convert.add_argument("--out", type=Path, metavar="FILE.safetensors", help="default: beside the file")
    convert.set_defaults(run=run_convert)
    return parser


def _add_common(parser: argparse.ArgumentParser, *, nested: bool = False) -> None:
    """What every command takes. A nested parser keeps quiet about defaults, or it would undo flags given before it."""

    def default(value: Any) -> Any:
        return argparse.SUPPRESS if nested else value

    group = parser.add_argument_group("folders and engine")
    group.add_argument("--root", type=Path, default=default(REPOSITORY), help="where the folders below lie by default")
    for name in ("models", "output", "data", "extensions"):
        group.add_argument(f"--{name}-dir", type=Path, default=default(None), metavar="FOLDER")
    group.add_argument("--attention", default=default(""), metavar="NAME", help="backend, instead of the fastest")
    group.add_argument("--log-level", default=default("info"), choices=("debug", "info", "warning", "error"))


def _add_serving(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("serving")
    where = group.add_mutually_exclusive_group()
    where.add_argument("--host", default="127.0.0.1", help="the address to listen at (default 127.0.0.1)")
    where.add_argument(
        "--listen", dest="host", action="store_const", const="0.0.0.0", help="listen at every address, with sign-in"
    )
    group.add_argument("--port", type=_port, default=7860, help="default 7860")
    group.add_argument("--share", action="store_true", help="open a public link through gradio's tunnel, with sign-in")
    group.add_argument(
        "--auth", action="append", default=[], metavar="USER:PASSWORD", help="who may sign in; may be repeated"
    )
    group.add_argument(
        "--checkpoint", default="", metavar="NAME", help="the default checkpoint, instead of the settings'"
    )
    group.add_argument("--no-browser", action="store_true", help="do not open the page in a browser")


def _add_generate(commands: Any) -> None:
    parser = commands.add_parser("generate", help="make pictures without the page", allow_abbrev=False)
    _add_common(parser, nested=True)
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--negative-prompt", default="")
    parser.add_argument("--seed", type=int, default=-1, help="-1 chooses one")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--width", type=int, help="default: what the checkpoint was made for")
    parser.add_argument("--height", type=int, help="default: what the checkpoint was made for")
    parser.add_argument("--sampler", default=SAMPLERS[0], help=", ".join(SAMPLERS))
    parser.add_argument("--scheduler", default=SCHEDULE_TYPES[0], help=", ".join(SCHEDULE_TYPES))
    parser.add_argument("--cfg-scale", type=float, default=7.0)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--model", default="", help="checkpoint, by its name in the models folder")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.png")
    parser.set_defaults(run=run_generate)


def _port(text: str) -> int:
    with contextlib.suppress(ValueError):
        if 0 < int(text) < 65536:
            return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a port; give a number from 1 to 65535")


def folders_from(chosen: argparse.Namespace) -> Folders:
    """The folders that the flags name."""
    return Folders.at(
        chosen.root,
        models=chosen.models_dir,
        outputs=chosen.output_dir,
        data=chosen.data_dir,
        extensions=chosen.extensions_dir,
    )


# --- the page ------------------------------------------------------------------------------------------------------


def run_server(chosen: argparse.Namespace) -> int:
    """Serves the page until SIGINT or SIGTERM."""
    from webui.server.accounts import accounts_for, parse_account
    from webui.server.folders import prepare
    from webui.server.listening import take_port
    from webui.server.options import ServerOptions

    folders = folders_from(chosen)
    options = ServerOptions(
        host=chosen.host,
        port=chosen.port,
        share=chosen.share,
        accounts=tuple(parse_account(text) for text in chosen.auth),
        browser=not chosen.no_browser,
        attention=chosen.attention,
        checkpoint=chosen.checkpoint,
    )
    accounts, made = accounts_for(options.accounts, loopback_only=options.loopback_only)
    options = options.with_accounts(accounts)
    # Mistakes in the folders and the port are said before the seconds that gradio takes to load.
    prepare(folders)
    set_up_logging(chosen.log_level, folders)
    with take_port(options.host, options.port) as taken:
        print("Atelier is loading …", flush=True)
        from webui import bootstrap

        with bootstrap.build(folders, options) as app:
            if made is not None:
                print(f"Sign in as {made.user!r} with the password {made.password!r}.", flush=True)
            _serve(app, options, taken)
    return 0


def _serve(app: App, options: ServerOptions, taken: Any) -> None:
    from webui.server.listening import explain
    from webui.server.serving import serve
    from webui.server.tunnel import close_links

    def listening() -> None:
        app.start()
        print(f"Atelier is at {options.address}", flush=True)
        threading.Thread(target=_announce, args=(options,), name="announce", daemon=True).start()

    try:
        serve(app.page.asgi, taken, listening=listening, stopping=app.page.end_streams)
    except OSError as error:  # somebody else began to listen there while gradio loaded
        raise explain(options.host, options.port, error) from error
    finally:
        close_links()


def _announce(options: ServerOptions) -> None:
    """Opens the page in the browser and the public link, whatever of the two is asked for."""
    from webui.server.tunnel import open_link

    if options.browser:
        webbrowser.open(options.address)
    if options.share:
        try:
            print(f"The public link is {open_link(options.port)}", flush=True)
        except AtelierError as error:
            print(error, flush=True)


# --- without the page ----------------------------------------------------------------------------------------------


def run_generate(chosen: argparse.Namespace) -> int:
    """Makes pictures and prints one line of JSON about them."""
    from webui import bootstrap, headless
    from webui.settings.store import SettingsStore

    set_up_logging(chosen.log_level)
    folders = folders_from(chosen)
    out = headless.check_target(chosen.out)
    # Standard output is for the line of JSON alone, whatever the libraries have to say.
    with contextlib.redirect_stdout(sys.stderr):
        bootstrap.keep_to_ourselves(folders)
        store = SettingsStore(folders.settings_file)
        settings = bootstrap.overridden(lambda: store.current, attention=chosen.attention, checkpoint="")
        room = bootstrap.build_engine(folders, settings)
        request = headless.make_request(
            room.catalogue,
            prompt=chosen.prompt,
            negative_prompt=chosen.negative_prompt,
            checkpoint=chosen.model,
            sampler=chosen.sampler,
            schedule_type=chosen.scheduler,
            steps=chosen.steps,
            width=chosen.width,
            height=chosen.height,
            cfg_scale=chosen.cfg_scale,
            seed=chosen.seed,
            batch_size=chosen.batch_size,
        )
        report = headless.generate(room.engine, request, out)
    print(json.dumps(report))
    return 0


def run_infotext(chosen: argparse.Namespace) -> int:
    """Prints an image's parameters as one JSON object."""
    from webui.core.infotext import parse_infotext
    from webui.gallery.pictures import read_infotext

    text = read_infotext(chosen.file)
    if text is None:
        print(f"error: {chosen.file} holds no generation parameters.", file=sys.stderr)
        return 1
    print(json.dumps(parse_infotext(text).to_json(), ensure_ascii=False))
    return 0


def run_inspect(chosen: argparse.Namespace) -> int:
    """Prints a line of JSON for each model file; a broken one is a line too, a path that is not there is not."""
    from webui.checkpoints.inspect import inspect, model_paths

    missing = [path for path in chosen.paths if not os.path.lexists(path)]
    for path in chosen.paths:
        for file in () if path in missing else model_paths(path):
            print(json.dumps(inspect(file), ensure_ascii=False))
    for path in missing:
        print(f"error: {path} does not exist.", file=sys.stderr)
    return 1 if missing else 0


def run_convert(chosen: argparse.Namespace) -> int:
    """Writes a pickled model as safetensors and says where it is now."""
    from webui.checkpoints.conversion import convert

    set_up_logging(chosen.log_level)
    print(f"Wrote {convert(chosen.file, chosen.out)}")
    return 0


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
