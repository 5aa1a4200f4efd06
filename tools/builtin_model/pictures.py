"""Composes the training pictures from packed drawings: what is to be seen, how it is painted, how it is said.

A `Picture` is chosen by a random generator, painted by `Studio.paint` and named by `caption`; each word of a caption is
made true by the painting: colours by turning hues, sizes, places and counts by where drawings are put.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from tools.builtin_model.art import FAVOURITES, Art, Sprite
from tools.builtin_model.scenes import COLOURS, COUNTS, POSITIONS, with_article

# Backgrounds in words; a scene's colours and a few that artists ask for.
GROUNDS: dict[str, tuple[int, int, int]] = {**COLOURS, "teal": (0, 128, 128)}

# Hue (0…255, as Pillow's HSV) and share of saturation that a colour word asks of a drawing.
TINTS = {"red": 0, "orange": 20, "yellow": 36, "green": 88, "blue": 156, "purple": 195, "pink": 234}

# Half the drawing's side as a fraction of the picture's side.
_REACH = {"small": (0.14, 0.19), "medium": (0.32, 0.40), "large": (0.44, 0.50)}

# The subject and the ground of one combination in seven are never shown together: the evaluation asks for those.
_HELD_OUT = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """One drawing in a picture: centre and half side as fractions, turn in degrees, mirrored or not, tint or ""."""

    sprite: Sprite
    x: float
    y: float
    reach: float
    turn: float
    mirrored: bool
    tint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """Drawings of one style on a plain ground, and the words for them (without style and ground)."""

    placed: tuple[Placed, ...]
    ground: str
    style: str
    subject: str


def held_out(subject: str, ground: str) -> bool:
    """Whether `subject` alone on `ground` is kept from the training pictures."""
    return (sum(subject.encode()) + 3 * tuple(GROUNDS).index(ground)) % _HELD_OUT == 0


def plural(subject: str) -> str:
    """Several of `subject`: "two foxes"."""
    if subject.endswith("y") and subject[-2] not in "aeiou":
        return subject[:-1] + "ies"
    return subject + ("es" if subject.endswith(("s", "x", "ch", "sh")) else "s")


def caption(picture: Picture, rng: random.Random) -> str:
    """One of several ways to say `picture`; sometimes silent about style or ground."""
    style = rng.random()
    ground = f"on {with_article(picture.ground)} background" if rng.random() < 0.75 else f"on {picture.ground}"
    if style < 0.5:
        return f"{picture.subject}, {picture.style} style, {ground}"
    if style < 0.7:
        return f"{picture.subject} {ground}, {picture.style} style"
    if style < 0.85:
        return f"{picture.subject} {ground}"
    if style < 0.95:
        return f"{picture.subject}, {picture.style} style"
    return picture.subject


class Studio:
    """Chooses and paints pictures of the `subjects` in the `styles` that the pack holds; empty `subjects` means all."""

    def __init__(self, art: Art, subjects: Sequence[str] = FAVOURITES, styles: Sequence[str] = ("3d", "flat")) -> None:
        self._art = art
        wanted = set(subjects)
        chosen = [
            sprite for sprite in art.sprites if sprite.style in styles and (not wanted or sprite.subject in wanted)
        ]
        self._by_style = {style: [sprite for sprite in chosen if sprite.style == style] for style in styles}
        self.sprites = tuple(chosen)

    def choose(self, rng: random.Random) -> Picture:
        """A picture with one drawing (76%), several alike (12%) or two different ones (12%); no held-out one."""
        style = rng.choice(tuple(self._by_style))
        ground = rng.choice(tuple(GROUNDS))
        kind = rng.random()
        sprites = self._by_style[style]
        if kind < 0.76:
            sprite = rng.choice([sprite for sprite in sprites if not held_out(sprite.subject, ground)])
            placed, words = _alone(rng, sprite, self._tint(rng, sprite, ground))
        elif kind < 0.88:
            sprite = rng.choice(sprites)
            placed, words = _alike(rng, sprite, self._tint(rng, sprite, ground))
        else:
            placed, words = _pair(rng, rng.choice(sprites), rng.choice(sprites))
        return Picture(placed=placed, ground=ground, style=style, subject=words)

    def alone(self, sprite: Sprite, ground: str, *, mirrored: bool = False) -> Picture:
        """`sprite` as it was drawn, or mirrored, upright in the middle of `ground`."""
        placed = Placed(sprite=sprite, x=0.5, y=0.5, reach=0.36, turn=0, mirrored=mirrored, tint="")
        return Picture(placed=(placed,), ground=ground, style=sprite.style, subject=with_article(sprite.subject))

    def paint(self, picture: Picture, size: int, rng: random.Random) -> Image.Image:
        """`picture` as RGB, `size` pixels square; `rng` varies the ground's tone a little."""
        red, green, blue = (max(0, min(255, value + rng.randint(-9, 9))) for value in GROUNDS[picture.ground])
        image = Image.new("RGB", (size, size), (red, green, blue))
        for item in picture.placed:
            drawing = self._tinted(item.sprite, item.tint)
            side = max(8, round(2 * item.reach * size))
            if item.mirrored:
                drawing = drawing.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            drawing = drawing.resize((side, side), Image.Resampling.LANCZOS)
            if item.turn:
                drawing = drawing.rotate(item.turn, Image.Resampling.BICUBIC)
            image.paste(drawing, (round(item.x * size - side / 2), round(item.y * size - side / 2)), drawing)
        return image

    def _tint(self, rng: random.Random, sprite: Sprite, ground: str) -> str:
        """A colour for one drawing in four that has colours to turn, never the ground's own."""
        if rng.random() > 0.25 or not colourful(self.drawing(sprite)):
            return ""
        return rng.choice([name for name in TINTS if name != ground])

    @lru_cache(maxsize=4096)  # noqa: B019 - one studio lives as long as its process
    def drawing(self, sprite: Sprite) -> Image.Image:
        """The drawing itself, RGBA."""
        return self._art.image(sprite)

    @lru_cache(maxsize=4096)  # noqa: B019 - as above
    def _tinted(self, sprite: Sprite, tint: str) -> Image.Image:
        drawing = self.drawing(sprite)
        return turned_hue(drawing, tint) if tint else drawing


def colourful(drawing: Image.Image) -> bool:
    """Whether at least a third of what is drawn has a hue that can be turned."""
    hsv = np.asarray(drawing.convert("RGB").convert("HSV"))
    seen = np.asarray(drawing.getchannel("A")) > 128
    return bool((hsv[..., 1][seen] > 70).mean() > 0.33)


def turned_hue(drawing: Image.Image, tint: str) -> Image.Image:
    """`drawing` (RGBA) with every hue turned to that of `tint`; greys, lights and shades stay."""
    hsv = np.array(drawing.convert("RGB").convert("HSV"))
    coloured = hsv[..., 1] > 40
    hsv[..., 0] = np.where(coloured, TINTS[tint], hsv[..., 0])
    floor = 90 if tint == "pink" else 170
    ceiling = 140 if tint == "pink" else 255
    hsv[..., 1] = np.where(coloured, hsv[..., 1].clip(floor, ceiling), hsv[..., 1])
    turned = Image.fromarray(hsv, "HSV").convert("RGB")
    turned.putalpha(drawing.getchannel("A"))
    return turned


def _spot(rng: random.Random, sprite: Sprite, x: float, y: float, reach: float, tint: str = "") -> Placed:
    return Placed(
        sprite=sprite,
        x=x + rng.uniform(-0.02, 0.02),
        y=y + rng.uniform(-0.02, 0.02),
        reach=reach,
        turn=rng.uniform(-7, 7) if rng.random() < 0.5 else 0,
        mirrored=rng.random() < 0.5,
        tint=tint,
    )


def _alone(rng: random.Random, sprite: Sprite, tint: str) -> tuple[tuple[Placed, ...], str]:
    size = rng.choice(("small", "medium", "medium", "medium", "medium", "large"))
    words = f"{tint} {sprite.subject}".strip()
    words = with_article(
        words if size == "medium" else f"{rng.choice(('big', 'large')) if size == 'large' else size} {words}"
    )
    x, y = 0.5, 0.5
    if size == "small" and rng.random() < 0.8:
        place = rng.choice(tuple(POSITIONS))
        (x, y), words = POSITIONS[place], f"{words} at the {place}"
    return (_spot(rng, sprite, x, y, rng.uniform(*_REACH[size]), tint),), words


_ROWS: dict[int, tuple[tuple[tuple[float, float], ...], ...]] = {
    2: (((0.27, 0.5), (0.73, 0.5)), ((0.27, 0.5), (0.73, 0.5)), ((0.5, 0.27), (0.5, 0.73))),
    3: (((0.5, 0.27), (0.27, 0.72), (0.73, 0.72)),),
    4: (((0.27, 0.27), (0.73, 0.27), (0.27, 0.73), (0.73, 0.73)),),
}


def _alike(rng: random.Random, sprite: Sprite, tint: str) -> tuple[tuple[Placed, ...], str]:
    count = rng.choice((2, 2, 3, 4))
    reach = rng.uniform(0.17, 0.21)
    placed = tuple(_spot(rng, sprite, x, y, reach, tint) for x, y in rng.choice(_ROWS[count]))
    return placed, f"{COUNTS[count]} {plural(f'{tint} {sprite.subject}'.strip())}"


def _pair(rng: random.Random, first: Sprite, second: Sprite) -> tuple[tuple[Placed, ...], str]:
    beside = rng.random() < 0.7
    spots = ((0.27, 0.5), (0.73, 0.5)) if beside else ((0.5, 0.27), (0.5, 0.73))
    placed = tuple(
        _spot(rng, sprite, x, y, rng.uniform(0.18, 0.22)) for sprite, (x, y) in zip((first, second), spots, strict=True)
    )
    link = rng.choice((" and ", " and ", " next to ")) if beside else " above "
    return placed, link.join(with_article(sprite.subject) for sprite in (first, second))
