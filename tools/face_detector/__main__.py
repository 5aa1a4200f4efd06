"""`python -m tools.face_detector`: makes webui/engine/faces/mtcnn.safetensors from the package facenet-pytorch.

The package is fetched with pip and opened, not installed. Its three networks have our order of layers; only the first
dense layers expect width, height and channels where torch flattens channels, height and width.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import zipfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from webui.checkpoints.packaged import Package, fetch
from webui.checkpoints.weights import open_weights
from webui.engine.faces.mtcnn import WEIGHTS, Mtcnn

FACENET = Package(
    requirement="facenet-pytorch==2.6.0",
    sha256="ecb82b27beb226d106f2219efe8f829b01b87a8595badd01545679bdb9f19cca",
    tags=(),
    folder="facenet_pytorch/data",
)
FILES = {"proposing": "pnet.pt", "refining": "rnet.pt", "placing": "onet.pt"}


def convert(archive: Path, precision: torch.dtype) -> dict[str, Tensor]:
    """The weights in `archive` by our names."""
    made: dict[str, Tensor] = {}
    with zipfile.ZipFile(archive) as opened, tempfile.TemporaryDirectory() as temporary:
        for network, file in FILES.items():
            with open_weights(Path(opened.extract(f"{FACENET.folder}/{file}", temporary))) as weights:
                theirs = [tensor.clone() for _, tensor in weights.tensors()]
            ours = Mtcnn().get_submodule(network).state_dict()
            for (name, like), tensor in zip(ours.items(), theirs, strict=True):
                ordered = _channels_first(tensor, theirs) if tensor.ndim == 2 and tensor.shape[1] > 512 else tensor
                made[f"{network}.{name}"] = ordered.reshape(like.shape).to(precision).contiguous()
    return made


def _channels_first(dense: Tensor, layers: list[Tensor]) -> Tensor:
    """A dense layer's columns from (width, height, channels) to (channels, height, width)."""
    channels = [layer.shape[0] for layer in layers if layer.ndim == 4][-1]
    side = int((dense.shape[1] // channels) ** 0.5)
    return dense.reshape(-1, side, side, channels).permute(0, 3, 2, 1)


def main() -> None:
    """Reads the command line and does what it says."""
    parser = argparse.ArgumentParser(prog="python -m tools.face_detector", description=__doc__)
    parser.add_argument("--archive", type=Path, help="the package's file, fetched with pip unless given")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        archive = given.archive or fetch(FACENET, Path(temporary), stopping=threading.Event())
        save_file(convert(archive, torch.float16), WEIGHTS, {"source": f"MTCNN, from {FACENET.requirement}"})
    print(f"{WEIGHTS}: {WEIGHTS.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
