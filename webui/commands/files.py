"""`infotext`, `inspect` and `convert`: what is said about a file, without an engine."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from webui.commands.common import set_up_logging


def add(commands: Any) -> None:
    """Adds the three commands."""
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
