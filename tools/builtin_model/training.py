"""What every training stage shares: the clock that shapes its learning rate, the average of its weights, its pictures.

Every stage has a time budget, saves its whole state every few minutes and continues from there when started again.
"""

from __future__ import annotations

import copy
import math
import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from tools.builtin_model import pictures, scenes
from tools.builtin_model.art import Art
from tools.builtin_model.networks import Preset

SAVE_EVERY_S = 180.0
# Share of the training pictures that are drawn shapes, which teach counts and places most plainly.
SHAPES_SHARE = 0.3

Told = tuple[str, str, str]
"""What a training picture shows, enough to caption it: subject, style ("" for drawn shapes), ground."""


def device() -> torch.device:
    """CUDA when there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(slots=True)
class Clock:
    """Time spent on a stage, over all its sessions, against its budget (seconds)."""

    budget_s: float
    spent_s: float = 0.0
    _since: float = 0.0

    def start(self) -> None:
        self._since = time.monotonic() - self.spent_s

    @property
    def fraction(self) -> float:
        """Share of the budget that is spent, 0…1."""
        self.spent_s = time.monotonic() - self._since
        return min(1.0, self.spent_s / self.budget_s)

    @property
    def left(self) -> str:
        """What is left of the budget, in minutes, as words for the log."""
        return f"{(self.budget_s - self.spent_s) / 60:.0f} min left"


def learning_rate(peak: float, fraction: float) -> float:
    """Two per cent of linear warm-up, then a cosine down to a hundredth of `peak`."""
    if fraction < 0.02:
        return peak * (0.02 + 0.98 * fraction / 0.02)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (fraction - 0.02) / 0.98)))


class Ema:
    """An exponential moving average of a module's weights, with a decay that grows at the start."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self.module = copy.deepcopy(module).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for average, value in zip(self.module.parameters(), module.parameters(), strict=True):
            average.lerp_(value, 1 - decay)


def save(path: Path, state: dict[str, Any]) -> None:
    """Writes a stage's state whole or not at all."""
    temporary = path.with_suffix(".partial")
    torch.save(state, temporary)
    temporary.replace(path)


def to_tensor(images: list[Image.Image]) -> Tensor:
    """RGB pictures of one size → (N, 3, H, W) in -1…1."""
    stack = np.stack([np.asarray(image) for image in images])
    return torch.from_numpy(stack).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def to_images(pixels: Tensor) -> list[Image.Image]:
    """(N, 3, H, W) in -1…1 → RGB pictures."""
    array = pixels.float().add(1).mul(127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(picture) for picture in array]


def grid(images: list[Image.Image], columns: int) -> Image.Image:
    """A contact sheet of pictures of one size."""
    width, height = images[0].size
    rows = math.ceil(len(images) / columns)
    sheet = Image.new("RGB", (columns * (width + 4), rows * (height + 4)), "white")
    for index, image in enumerate(images):
        sheet.paste(image, (index % columns * (width + 4), index // columns * (height + 4)))
    return sheet


def caption(told: Told, rng: random.Random) -> str:
    """One of several ways to say what a training picture shows."""
    subject, style, ground = told
    if style:
        return pictures.caption(pictures.Picture(placed=(), ground=ground, style=style, subject=subject), rng)
    return scenes.caption(scenes.Scene(items=(), subject=subject, background=ground), rng)


def training_picture(studio: pictures.Studio | None, size: int, rng: random.Random) -> tuple[Image.Image, Told]:
    """A training picture, `size` pixels square, and what it shows; drawn shapes alone without a `studio`."""
    if studio is None or rng.random() < SHAPES_SHARE:
        scene = scenes.random_scene(rng)
        return scenes.draw(scene, size, rng), (scene.subject, "", scene.background)
    picture = studio.choose(rng)
    return studio.paint(picture, size, rng), (picture.subject, picture.style, picture.ground)


class _Pictures(IterableDataset[tuple[np.ndarray[Any, Any], Told]]):
    """Endless training pictures as arrays, each loader process with seeds of its own."""

    def __init__(self, pack: Path | None, preset: Preset, size: int, seed: int) -> None:
        self._pack, self._preset, self._size, self._seed = pack, preset, size, seed

    def __iter__(self) -> Iterator[tuple[np.ndarray[Any, Any], Told]]:
        worker = get_worker_info()
        rng = random.Random(1000 * self._seed + (worker.id if worker else 0))
        studio = None
        if self._pack is not None:
            studio = pictures.Studio(Art(self._pack), self._preset.subjects, self._preset.styles)
        while True:
            image, told = training_picture(studio, self._size, rng)
            yield np.asarray(image), told


def _together(rows: list[tuple[np.ndarray[Any, Any], Told]]) -> tuple[Tensor, list[Told]]:
    return torch.from_numpy(np.stack([array for array, _ in rows])), [told for _, told in rows]


def picture_batches(
    pack: Path | None, preset: Preset, *, batch: int, seed: int, size: int | None = None
) -> Iterator[tuple[Tensor, list[Told]]]:
    """Endless batches (N, H, W, 3) uint8 and what they show; drawn by processes of their own beside a GPU.

    Without a `pack` of drawings they show shapes alone.
    """
    workers = (os.cpu_count() or 1) if device().type == "cuda" else 0
    return iter(
        DataLoader(_Pictures(pack, preset, size or preset.side, seed), batch, num_workers=workers, collate_fn=_together)
    )


def as_pixels(arrays: Tensor, where: torch.device) -> Tensor:
    """(N, H, W, 3) uint8 → (N, 3, H, W) in -1…1 on `where`."""
    return arrays.to(where).permute(0, 3, 1, 2).float().div(127.5).sub(1)
