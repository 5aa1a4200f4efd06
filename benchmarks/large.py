"""What large pictures take: the VAE's peak memory and seconds against the size, at once and in strips.

    .venv/bin/python benchmarks/large.py                           512² to 2048², at once up to 1024²
    .venv/bin/python benchmarks/large.py --sizes 512 1024 --tiles 0 256 512 --json
    .venv/bin/python benchmarks/large.py --plot docs/large-pictures.png

Each decoding runs in a process of its own, on latents of the chosen checkpoint (the built-in one by default). Memory is
what the process's resident set (on a graphics card: torch's allocations) grows by at most while it decodes, the result
included; what strips keep between two layers goes to temporary files. A tile of 0 decodes at once. Seconds are those of
the wall and of the processor: on a busy machine only the second say something.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from PIL import Image, ImageDraw  # noqa: E402  # after the path, so that the file runs from any folder

MEBIBYTE = 2**20
# Colours of the lines of a plot, which tell from each other also without colours by the labels at their ends.
COLOURS = ("#d62728", "#1f77b4", "#2ca02c", "#9467bd", "#8c564b")


def measure(size: int, tile: int, checkpoint: str, threads: int) -> dict[str, Any]:
    """Decodes a picture of `size`² in this process, which must not have decoded before."""
    import torch
    import torch.nn.functional as F

    from webui.checkpoints.load import load_checkpoint
    from webui.checkpoints.scan import CheckpointFolder
    from webui.engine.tiled.vae import decode_in_strips
    from webui.hardware.device import choose_device, choose_dtype

    torch.set_num_threads(threads)
    folder = CheckpointFolder(ROOT / "models")
    device = choose_device()
    path, info = folder.path(checkpoint), folder.checkpoint(checkpoint)
    vae: Any = load_checkpoint(path, info, dtype=choose_dtype(device), device=device).vae
    side = size >> (len(vae.config["block_out_channels"]) - 1)
    with torch.inference_mode():
        picture = F.interpolate(torch.rand(1, 3, 9, 9, generator=torch.Generator().manual_seed(0)), (128, 128)) * 2 - 1
        latents = vae.encode(picture.to(device, vae.dtype)).latent_dist.mean
        latents = F.interpolate(latents.float(), (side, side), mode="bicubic").to(vae.dtype)
        begin = start_watch(device)
        wall, processor = time.perf_counter(), time.process_time()
        made = decode_in_strips(vae, latents, tile=tile, memory_bytes=0) if tile else vae.decode(latents).sample
        made = made.cpu()
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        peak = peak_bytes(device) - begin
    return {"size": size, "tile": tile, "bytes": peak, "seconds": wall, "processor_seconds": processor}


def start_watch(device: Any) -> int:
    """What is taken now, with the peak forgotten."""
    import torch

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return status_bytes("VmRSS")


def peak_bytes(device: Any) -> int:
    """The peak since `start_watch`."""
    import torch

    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else status_bytes("VmHWM")


def status_bytes(name: str) -> int:
    """A line of /proc/self/status, which Linux alone has."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def apart(size: int, tile: int, options: argparse.Namespace) -> dict[str, Any]:
    """`measure` in a process of its own."""
    asked = ["--child", str(size), str(tile), "--checkpoint", options.checkpoint, "--threads", str(options.threads)]
    done = subprocess.run([sys.executable, __file__, *asked], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def table(rows: Sequence[dict[str, Any]]) -> str:
    """One line a measurement."""
    lines = ["| picture | tile | peak memory | seconds | of the processor |", "|---|---|---|---|---|"]
    for row in rows:
        lines.append(
            f"| {row['size']}² | {row['tile'] or 'at once'} | {row['bytes'] / MEBIBYTE:,.0f} MiB |"
            f" {row['seconds']:.1f} | {row['processor_seconds']:.1f} |"
        )
    return "\n".join(lines)


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Peak memory against the picture's side, a line for each tile."""
    width, height, left, bottom, top, right = 760, 440, 80, 50, 30, 130
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    widest = max(row["size"] for row in rows)
    most = max(row["bytes"] for row in rows) * 1.05

    def place(size: float, taken: float) -> tuple[float, float]:
        across = left + (width - left - right) * size / widest
        return across, height - bottom - (height - top - bottom) * taken / most

    for share in range(6):
        taken = most * share / 5
        draw.line([place(0, taken), place(widest, taken)], fill="#dddddd")
        draw.text((8, place(0, taken)[1] - 6), f"{taken / MEBIBYTE:,.0f} MiB", fill="black")
    for size in sorted({row["size"] for row in rows}):
        across, down = place(size, 0)
        draw.text((across - 14, down + 8), str(size), fill="black")
    draw.text((left, height - 20), "side of the picture in pixels; peak memory of decoding it", fill="black")
    for colour, tile in zip(COLOURS, sorted({row["tile"] for row in rows}), strict=False):
        points = [place(row["size"], row["bytes"]) for row in rows if row["tile"] == tile]
        draw.line(points, fill=colour, width=3)
        for across, down in points:
            draw.ellipse((across - 4, down - 4, across + 4, down + 4), fill=colour)
        draw.text((points[-1][0] + 10, points[-1][1] - 6), f"tile {tile}" if tile else "at once", fill=colour)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 768, 1024, 1536, 2048])
    parser.add_argument("--tiles", type=int, nargs="+", default=[0, 256, 512], help="0 decodes at once")
    parser.add_argument("--at-once-up-to", type=int, default=1024, help="largest picture that is decoded at once")
    parser.add_argument("--checkpoint", default="", help="the built-in one by default")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    parser.add_argument("--plot", type=Path, help="also draw memory against size into this PNG")
    parser.add_argument("--child", type=int, nargs=2, metavar=("SIZE", "TILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(*options.child, options.checkpoint, options.threads)))
        return
    rows = [
        apart(size, tile, options)
        for tile in options.tiles
        for size in sorted(options.sizes)
        if tile or size <= options.at_once_up_to
    ]
    print(json.dumps(rows) if options.json else table(rows))
    if options.plot:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
