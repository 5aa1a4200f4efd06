"""What the model is asked about the drawings it was taught, and how the answers are judged.

Adherence: a trained subject in a trained style must look most like that subject among all that were taught.
Composition: subject, colour, style and ground together as they never were in training. Diversity: one caption, many
seeds. The judge is `features`, which knows the drawings and not the networks.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tools.builtin_model.analysis import colour_name, ground_colour
from tools.builtin_model.features import Gallery, dominant_tint, features
from tools.builtin_model.pictures import GROUNDS, TINTS, held_out
from tools.builtin_model.scenes import with_article
from tools.builtin_model.shapes_exam import Draw

TOP = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A caption, the picture that came, and which of the things asked for it shows."""

    prompt: str
    seed: int
    image: Image.Image
    right: dict[str, bool]

    @property
    def all_right(self) -> bool:
        """Whether nothing that was asked for is missing."""
        return all(self.right.values())


def adherence(gallery: Gallery, count: int, draw: Draw) -> Iterator[Answer]:
    """`count` trained subjects in trained styles: "top 1" and "top 5" of the look-alikes, and the ground."""
    rng = random.Random(7000)
    taught = sorted(set(zip(gallery.subjects, gallery.styles, strict=True)))
    rng.shuffle(taught)
    grounds = tuple(GROUNDS)
    for seed, (subject, style) in zip(range(count), itertools.cycle(taught), strict=False):
        ground = rng.choice([ground for ground in grounds if not held_out(subject, ground)])
        prompt = f"{with_article(subject)}, {style} style, on {with_article(ground)} background"
        image = draw(prompt, seed)
        seen = features(image)
        near = gallery.nearest(seen, TOP) if seen is not None else []
        right = {
            "top 1": subject in near[:1],
            f"top {TOP}": subject in near,
            "background": colour_name(ground_colour(image), GROUNDS) == ground,
        }
        yield Answer(prompt=prompt, seed=seed, image=image, right=right)


def composition(gallery: Gallery, count: int, draw: Draw) -> Iterator[Answer]:
    """`count` captions of subject × colour × style × ground that training left out: ground and colour right."""
    rng = random.Random(8000)
    rows = zip(gallery.subjects, gallery.styles, gallery.tintable, strict=True)
    taught = sorted({(subject, style) for subject, style, tintable in rows if tintable})
    for seed in range(count):
        subject, style = rng.choice(taught)
        ground = rng.choice([ground for ground in GROUNDS if held_out(subject, ground)])
        tint = rng.choice([tint for tint in TINTS if tint != ground])
        prompt = f"{with_article(f'{tint} {subject}')}, {style} style, on {with_article(ground)} background"
        image = draw(prompt, seed)
        right = {
            "background": colour_name(ground_colour(image), GROUNDS) == ground,
            "colour": dominant_tint(image) == tint,
        }
        yield Answer(prompt=prompt, seed=seed, image=image, right=right)


def diversity(prompt: str, count: int, draw: Draw) -> tuple[float, list[Answer]]:
    """The mean distance between the pictures of `count` seeds of one caption: RMS of RGB in 0…1; and the pictures."""
    answers = [Answer(prompt=prompt, seed=seed, image=draw(prompt, seed), right={}) for seed in range(count)]
    arrays = [np.asarray(answer.image, dtype=np.float64) / 255 for answer in answers]
    pairs = [float(np.sqrt(((a - b) ** 2).mean())) for a, b in itertools.combinations(arrays, 2)]
    return sum(pairs) / len(pairs), answers


def shares(answers: Sequence[Answer]) -> dict[str, float]:
    """The share of answers with each thing right."""
    return {name: sum(answer.right[name] for answer in answers) / len(answers) for name in answers[0].right}


def reconstruction(models: Path, model: str, pictures: Sequence[Image.Image]) -> dict[str, float]:
    """Mean PSNR (dB) and SSIM of the checkpoint `model`'s autoencoder over `pictures` (RGB, sides multiples of 8)."""
    import torch

    from tools.builtin_model.training import to_tensor
    from webui.checkpoints.load import load_checkpoint
    from webui.checkpoints.scan import CheckpointFolder

    folder = CheckpointFolder(models)
    info = folder.checkpoint(model)
    vae = load_checkpoint(folder.path(info.name), info, dtype=torch.float32, device=torch.device("cpu")).vae
    psnr: list[float] = []
    similarity: list[float] = []
    with torch.inference_mode():
        for picture in pictures:
            wanted = to_tensor([picture])
            got = vae.decode(vae.encode(wanted).latent_dist.mean).sample.clamp(-1, 1)  # pyright: ignore
            psnr.append(10 * float(torch.log10(4 / (got - wanted).square().mean())))
            similarity.append(ssim(got, wanted))
    return {"psnr_db": sum(psnr) / len(psnr), "ssim": sum(similarity) / len(similarity)}


def ssim(got: Any, wanted: Any) -> float:
    """Structural similarity of (1, 3, H, W) in -1…1 (Wang et al. 2004, equation 13; flat windows of 8 × 8), 0…1."""
    import torch.nn.functional as F

    def mean(x: Any) -> Any:
        return F.avg_pool2d(x, 8, stride=4)

    a, b = (got + 1) / 2, (wanted + 1) / 2
    mean_a, mean_b = mean(a), mean(b)
    variance_a, variance_b = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2
    covariance = mean(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    top = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return float((top / ((mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2))).mean())
