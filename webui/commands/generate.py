"""`generate`: pictures without the page, from words, from a picture, or of a masked part."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from webui.commands.common import add_folders, opened_room
from webui.commands.wishes import EMPTY, GROUPS, task_of, wishes_of


def add(commands: Any) -> None:
    """Adds the command."""
    parser = commands.add_parser("generate", help="make pictures without the page", allow_abbrev=False)
    add_folders(parser, nested=True)
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.png")
    parser.add_argument("--width", type=int, help="default: the picture's own, or what the checkpoint was made for")
    parser.add_argument("--height", type=int, help="default: the picture's own, or what the checkpoint was made for")
    parser.add_argument("--init-image", type=Path, metavar="FILE", help="the picture to start from")
    parser.add_argument("--mask", type=Path, metavar="FILE", help="white where the picture is to change")
    for group in GROUPS:
        added = parser.add_argument_group(group.title)
        for flag in group.flags:
            flag.add(added)
    parser.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> int:
    """Makes pictures and prints one line of JSON about them."""
    from webui import headless

    task = task_of(chosen)
    wishes = wishes_of(chosen, task)
    out = headless.check_target(chosen.out)
    with opened_room(chosen) as room:
        picture = None
        for name, path in (("init_image", chosen.init_image), ("mask", chosen.mask)):
            if path is not None:
                wishes[name], size = headless.read_picture(path, room.settings.max_image_pixels)
                picture = picture or size
        request = headless.make_request(
            room.engine_room.catalogue,
            EMPTY[task],
            wishes,
            width=chosen.width,
            height=chosen.height,
            picture=picture,
        )
        room.say(json.dumps(headless.generate(room.engine_room.engine, request, out)))
    return 0
