"""The three networks of MTCNN (Zhang et al. 2016, arXiv 1604.02878, figure 2), and the weights that come with Atelier.

Pictures go in as RGB, (level - 127.5) / 128. Each network says how likely there is a face (two classes), and how its
box differs from the one looked at, in shares of that box; the last one also where eyes, nose and mouth are.
"""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn

# Written by `python -m tools.face_detector`; README.md beside it says whence.
WEIGHTS = Path(__file__).with_name("mtcnn.safetensors")


class Proposing(nn.Module):
    """P-Net: a convolution that looks at every window of 12 pixels, two pixels apart."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            *_convolution(3, 10, 3),
            nn.MaxPool2d(2, 2, ceil_mode=True),
            *_convolution(10, 16, 3),
            *_convolution(16, 32, 3),
        )
        self.faces = nn.Conv2d(32, 2, 1)
        self.boxes = nn.Conv2d(32, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(1, 3, h, w) → how likely each window is a face, (rows, columns), and its box, (4, rows, columns)."""
        x = self.trunk(x)
        return self.faces(x)[0].softmax(0)[1], self.boxes(x)[0]


class Refining(nn.Module):
    """R-Net: one box at a time, at 24 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            *_convolution(3, 28, 3),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            *_convolution(28, 48, 3),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            *_convolution(48, 64, 2),
            nn.Flatten(),
            nn.Linear(576, 128),
            nn.PReLU(128),
        )
        self.faces = nn.Linear(128, 2)
        self.boxes = nn.Linear(128, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 3, 24, 24) → how likely each is a face, (N,), and its box, (N, 4)."""
        x = self.trunk(x)
        return self.faces(x).softmax(1)[:, 1], self.boxes(x)


class Placing(nn.Module):
    """O-Net: one box at a time, at 48 pixels, with five points of the face."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            *_convolution(3, 32, 3),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            *_convolution(32, 64, 3),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            *_convolution(64, 64, 3),
            nn.MaxPool2d(2, 2, ceil_mode=True),
            *_convolution(64, 128, 2),
            nn.Flatten(),
            nn.Linear(1152, 256),
            nn.PReLU(256),
        )
        self.faces = nn.Linear(256, 2)
        self.boxes = nn.Linear(256, 4)
        self.points = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, 3, 48, 48) → how likely each is a face, (N,), its box, (N, 4), and its points: x, then y, (N, 10)."""
        x = self.trunk(x)
        return self.faces(x).softmax(1)[:, 1], self.boxes(x), self.points(x)


class Mtcnn(nn.Module):
    """The three of them."""

    def __init__(self) -> None:
        super().__init__()
        self.proposing = Proposing()
        self.refining = Refining()
        self.placing = Placing()


def load_mtcnn() -> Mtcnn:
    """The networks with their weights, on the CPU, in float32."""
    networks = Mtcnn()
    networks.load_state_dict(load_file(WEIGHTS))
    return networks.eval().requires_grad_(False)


def _convolution(inputs: int, outputs: int, side: int) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(inputs, outputs, side), nn.PReLU(outputs)
