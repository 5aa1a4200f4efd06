"""Examines the built-in model: a table of how well it follows its prompts, and a contact sheet with failures marked.

``python3 tools/builtin_model/evaluate.py [--json] [--quick]``; needs no network and nothing of the training. Under a
Python without Atelier's packages it goes on in the program's own environment, ``.venv``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = Path(__file__).with_name("reference")
DIVERSITY_PROMPT = "a cat, 3d style"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=ROOT / "models", help="the models folder")
    parser.add_argument("--model", default="", help="its name there; the built-in one unless told")
    parser.add_argument("--sheet", type=Path, default=ROOT / "docs/screenshots/built-in-model.png")
    parser.add_argument("--quick", action="store_true", help="a third of the captions")
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of a table")
    arguments = parser.parse_args()
    report(arguments.models, arguments.model, arguments.sheet, quick=arguments.quick, as_json=arguments.json)


def report(models: Path, model: str, sheet_file: Path, *, quick: bool, as_json: bool) -> None:
    """Asks everything (a third of it when `quick`), writes the contact sheet, prints what was right."""
    from PIL import Image

    from tools.builtin_model import drawings_exam, shapes_exam
    from tools.builtin_model.features import read_gallery

    gallery = read_gallery(REFERENCE / "drawings.npz")
    draw = shapes_exam.engine_draw(models, model)
    part = 3 if quick else 1
    started = time.perf_counter()
    subjects = list(drawings_exam.adherence(gallery, 200 // part, draw))
    unseen = list(drawings_exam.composition(gallery, 100 // part, draw))
    spread, seeds = drawings_exam.diversity(DIVERSITY_PROMPT, 16, draw)
    shapes = list(shapes_exam.judge(shapes_exam.single_cases(50), draw))
    rest = [] if quick else [*shapes_exam.count_cases(24), *shapes_exam.place_cases(27)]
    shapes += shapes_exam.judge(rest, draw)
    held_out = [Image.open(file).convert("RGB") for file in sorted((REFERENCE / "held_out").glob("*.png"))]
    results: dict[str, Any] = {
        "adherence": drawings_exam.shares(subjects),
        "composition": drawings_exam.shares(unseen),
        "vae": drawings_exam.reconstruction(models, model, held_out),
        "diversity": {"rms": spread},
        **{f"shapes, {group}": row for group, row in shapes_exam.shares(shapes).items()},
    }
    sheet_file.parent.mkdir(parents=True, exist_ok=True)
    pictures = [(answer.image, answer.all_right) for answer in (*subjects[:60], *unseen[:30], *seeds)]
    pictures += [(verdict.image, verdict.all_right) for verdict in shapes[:50]]
    sheet(pictures).save(sheet_file, optimize=True)
    seconds = round(time.perf_counter() - started, 1)
    asked = len(subjects) + len(unseen) + len(seeds) + len(shapes)
    if as_json:
        print(json.dumps({"pictures": asked, "seconds": seconds, **results}))
        return
    for name, row in results.items():
        print(f"{name:16}", "  ".join(f"{what} {value:.3g}" for what, value in row.items()))
    for answer in (*subjects, *unseen):
        if not answer.all_right:
            wrong = ", ".join(name for name, right in answer.right.items() if not right)
            print(f"wrong {wrong}: {answer.prompt!r}, seed {answer.seed}")
    print(f"{asked} pictures in {seconds} s; {sheet_file}")


def sheet(pictures: Sequence[tuple[Image.Image, bool]], columns: int = 12, side: int = 128) -> Image.Image:
    """All pictures side by side at `side` pixels, those with something wrong in a red frame."""
    from PIL import Image

    cell = side + 8
    rows = -(-len(pictures) // columns)
    page = Image.new("RGB", (columns * cell, rows * cell), "white")
    for index, (picture, right) in enumerate(pictures):
        frame = Image.new("RGB", (cell - 2, cell - 2), "white" if right else (220, 30, 40))
        frame.paste(picture.resize((side, side), Image.Resampling.LANCZOS), (3, 3))
        page.paste(frame, (index % columns * cell + 1, index // columns * cell + 1))
    return page


if __name__ == "__main__":
    os.chdir(ROOT)
    python = next(ROOT.glob(".venv/*/python*"), None)
    if find_spec("diffusers") is None and python is not None:
        os.execv(python, [str(python), *sys.argv])
    sys.path.insert(0, str(ROOT))
    main()
