"""`upscale`: files and folders of pictures made larger, one line of JSON for each."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from webui.commands.common import add_folders, opened_room
from webui.core.requests import DiffusionUpscaler, FaceRestoration, Upscale

_DEFAULTS = Upscale(image=b"")


def add(commands: Any) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "upscale", help="enlarge pictures and whole folders; what is there already is skipped", allow_abbrev=False
    )
    add_folders(parser, nested=True)
    parser.add_argument("inputs", type=Path, nargs="+", metavar="IN", help="a picture, or a folder of pictures")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where results go, by the same names")
    parser.add_argument("--overwrite", action="store_true", help="make anew what is there already")
    what = parser.add_argument_group("upscaling")
    what.add_argument("--upscaler", default=_DEFAULTS.upscaler, metavar="NAME", help="default: %(default)s")
    what.add_argument("--scale", type=float, default=_DEFAULTS.scale, help="default: %(default)g")
    what.add_argument("--width", type=int, default=0, help="instead of --scale; a side left out follows the other")
    what.add_argument("--height", type=int, default=0, help="instead of --scale; a side left out follows the other")
    what.add_argument("--no-crop", action="store_true", help="fit into width and height instead of filling them")
    what.add_argument("--upscaler-2", default=_DEFAULTS.upscaler_2, metavar="NAME", help="blended in")
    what.add_argument("--upscaler-2-visibility", type=float, default=_DEFAULTS.upscaler_2_visibility)
    what.add_argument("--tile", type=int, default=_DEFAULTS.tile, help="in pixels of the picture; 0 takes it whole")
    what.add_argument("--overlap", type=int, default=_DEFAULTS.overlap, help="in pixels of the picture")
    told = parser.add_argument_group("upscalers that are diffusion models (Stable Diffusion x4 upscaler)")
    told.add_argument("--prompt", default=_DEFAULTS.diffusion.prompt)
    told.add_argument("--negative-prompt", default=_DEFAULTS.diffusion.negative_prompt)
    told.add_argument("--steps", type=int, default=_DEFAULTS.diffusion.steps)
    told.add_argument("--cfg-scale", type=float, default=_DEFAULTS.diffusion.cfg_scale)
    told.add_argument("--noise-level", type=int, default=_DEFAULTS.diffusion.noise_level)
    told.add_argument("--seed", type=int, default=_DEFAULTS.diffusion.seed)
    faces = parser.add_argument_group("face restoration")
    faces.add_argument("--face-restorer", default="", metavar="NAME")
    faces.add_argument("--face-visibility", type=float, default=_DEFAULTS.faces.visibility)
    faces.add_argument("--codeformer-weight", type=float, default=_DEFAULTS.faces.weight)
    parser.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> int:
    """Prints a line of JSON for each picture as it is done; exit code 2 if any could not be made."""
    from webui import headless

    wanted = Upscale(
        image=b"",
        upscaler=chosen.upscaler,
        scale=chosen.scale,
        width=chosen.width,
        height=chosen.height,
        crop=not chosen.no_crop,
        upscaler_2=chosen.upscaler_2,
        upscaler_2_visibility=chosen.upscaler_2_visibility,
        tile=chosen.tile,
        overlap=chosen.overlap,
        faces=FaceRestoration(
            model=chosen.face_restorer, visibility=chosen.face_visibility, weight=chosen.codeformer_weight
        ),
        diffusion=DiffusionUpscaler(
            prompt=chosen.prompt,
            negative_prompt=chosen.negative_prompt,
            steps=chosen.steps,
            cfg_scale=chosen.cfg_scale,
            noise_level=chosen.noise_level,
            seed=chosen.seed,
        ),
    )
    failed = False
    with opened_room(chosen) as room:
        headless.check_upscale(room.engine_room.catalogue, wanted)
        for line in headless.upscale(
            room.engine_room.engine,
            wanted,
            headless.batch(chosen.inputs, chosen.out),
            overwrite=chosen.overwrite,
            max_pixels=room.settings.max_image_pixels,
        ):
            room.say(json.dumps(line, ensure_ascii=False))
            failed = failed or "error" in line
    return 2 if failed else 0
