"""The command line: which command is run, errors to one sentence and an exit code. Without a command, it serves.

Exit codes: 0 done, 1 nothing found (infotext, inspect), 2 it cannot be done as asked, or not for every picture, 130
Ctrl-C. The commands are in `webui.commands`. Nothing slow is imported before the flags have been read.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import threading
import webbrowser
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from webui import __version__
from webui.commands import doctor, files, generate, upscale
from webui.commands.common import add_folders, engine_flags, folders_from, set_up_logging
from webui.core.errors import AtelierError

if TYPE_CHECKING:
    from webui.bootstrap import App
    from webui.server.options import ServerOptions


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
    add_folders(parser)
    _add_serving(parser)
    commands = parser.add_subparsers(title="commands (none: serve the page)", metavar="COMMAND")
    for command in (generate, upscale, files, doctor):
        command.add(commands)
    return parser


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


def _port(text: str) -> int:
    with contextlib.suppress(ValueError):
        if 0 < int(text) < 65536:
            return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a port; give a number from 1 to 65535")


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
        settings={**engine_flags(chosen), "checkpoint": chosen.checkpoint},
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
