"""`doctor`: what this machine is to Atelier, and what would make it faster."""

from __future__ import annotations

import argparse
import json
from typing import Any

from webui.commands.common import add_folders, opened_settings


def add(commands: Any) -> None:
    """Adds the command to the parser's."""
    parser = commands.add_parser(
        "doctor", help="say what this machine can do, and what would make it faster", allow_abbrev=False
    )
    add_folders(parser, nested=True)
    parser.add_argument("--json", action="store_true", help="as one JSON object")
    parser.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> int:
    """Prints the report."""
    with opened_settings(chosen) as (folders, settings, say):
        from webui.doctor import as_text, examine

        report = examine(folders, settings())
        say(json.dumps(report, ensure_ascii=False) if chosen.json else as_text(report))
    return 0
