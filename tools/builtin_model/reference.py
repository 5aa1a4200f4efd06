"""Writes what `evaluate` judges by, so that judging needs neither the pack of drawings nor a network."""

from __future__ import annotations

import logging
import random
from pathlib import Path

from tools.builtin_model.art import Art
from tools.builtin_model.evaluate import REFERENCE
from tools.builtin_model.features import make_gallery
from tools.builtin_model.networks import PRESETS
from tools.builtin_model.pictures import GROUNDS, Studio

logger = logging.getLogger(__name__)

HELD_OUT_PICTURES = 16


def write_reference(pack: Path, preset_name: str) -> None:
    """Writes ``reference/``: the trained drawings' features, and pictures of drawings the training never showed.

    With a preset that trains on every drawing the held-out pictures are new compositions of trained ones.
    """
    art, preset = Art(pack), PRESETS[preset_name]
    gallery = make_gallery(Studio(art, preset.subjects, preset.styles), preset.side)
    REFERENCE.mkdir(exist_ok=True)
    gallery.write(REFERENCE / "drawings.npz")
    rest = Studio(art, sorted({sprite.subject for sprite in art.sprites} - set(preset.subjects)), preset.styles)
    rng = random.Random(9000)
    folder = REFERENCE / "held_out"
    folder.mkdir(exist_ok=True)
    for index, sprite in enumerate(rng.sample(rest.sprites, HELD_OUT_PICTURES)):
        picture = rest.paint(rest.alone(sprite, rng.choice(tuple(GROUNDS))), preset.side, rng)
        picture.save(folder / f"{index:02d}.png", optimize=True)
    logger.info("wrote %d feature rows and %d pictures to %s", len(gallery.subjects), HELD_OUT_PICTURES, REFERENCE)
