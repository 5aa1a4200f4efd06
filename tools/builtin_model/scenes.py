"""Draws the training pictures: a `Scene` says what is to be seen, `draw` paints it, `caption` names it.

Everything is a pure function of a scene or of a random generator, so a seed fixes the whole data set. One combination
in seven of shape, colour and background is never drawn as a single object (`held_out`), so that the evaluation can ask
for what the model has not seen.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (222, 40, 42),
    "orange": (246, 140, 30),
    "yellow": (250, 214, 40),
    "green": (46, 160, 67),
    "blue": (40, 92, 220),
    "purple": (134, 60, 186),
    "pink": (248, 150, 190),
    "brown": (128, 80, 44),
    "black": (22, 22, 24),
    "white": (248, 248, 246),
    "gray": (138, 140, 144),
    "cyan": (48, 200, 214),
}

SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond", "ring", "cross")

PLURALS = {"cross": "crosses"}

COUNTS = {1: "a", 2: "two", 3: "three", 4: "four"}

# Centre of the object as a fraction of the picture's width and height.
POSITIONS: dict[str, tuple[float, float]] = {
    "top left": (0.25, 0.25),
    "top": (0.5, 0.25),
    "top right": (0.75, 0.25),
    "left": (0.25, 0.5),
    "center": (0.5, 0.5),
    "right": (0.75, 0.5),
    "bottom left": (0.25, 0.75),
    "bottom": (0.5, 0.75),
    "bottom right": (0.75, 0.75),
}

# Radius of the object as a fraction of the picture's shorter side.
SIZES: dict[str, tuple[float, float]] = {"small": (0.11, 0.15), "medium": (0.19, 0.25), "large": (0.3, 0.38)}

SUPERSAMPLING = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One object: its shape, its colour's name, its centre and radius as fractions, its turn in degrees."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float
    turn: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Objects on a plain background, and the words that say so (without the background)."""

    items: tuple[Item, ...]
    background: str
    subject: str


def plural(shape: str) -> str:
    """Several of `shape`: "stars"."""
    return PLURALS.get(shape, shape + "s")


def with_article(words: str) -> str:
    """The words after "a" or "an"."""
    return ("an " if words[0] in "aeio" else "a ") + words


def _turn(rng: random.Random) -> float:
    return rng.uniform(-9, 9)


def _single(rng: random.Random, colours: list[str]) -> tuple[tuple[Item, ...], str]:
    shape, colour = rng.choice(SHAPES), colours[0]
    size = rng.choice(("small", "medium", "medium", "large"))
    radius = rng.uniform(*SIZES[size])
    size_word = rng.choice(("large", "big")) if size == "large" else size
    words = f"{colour} {shape}" if size == "medium" and rng.random() < 0.9 else f"{size_word} {colour} {shape}"
    subject = with_article(words)
    if size != "large" and rng.random() < 0.5:
        place = rng.choice(tuple(POSITIONS))
        x, y = POSITIONS[place]
        subject += rng.choice((" at the ", " at the ", " in the " if " " in place else " on the ")) + place
    else:
        x, y = 0.5, 0.5
    if size == "small" and subject.endswith(shape) and rng.random() < 0.1:
        subject = with_article(f"{colour} {shape}")
    item = Item(
        shape=shape,
        colour=colour,
        x=x + rng.uniform(-0.03, 0.03),
        y=y + rng.uniform(-0.03, 0.03),
        radius=radius,
        turn=_turn(rng),
    )
    return (item,), subject


_ROWS: dict[int, tuple[tuple[tuple[float, float], ...], ...]] = {
    2: (((0.28, 0.5), (0.72, 0.5)), ((0.28, 0.5), (0.72, 0.5)), ((0.5, 0.28), (0.5, 0.72))),
    3: (((0.18, 0.5), (0.5, 0.5), (0.82, 0.5)), ((0.5, 0.26), (0.26, 0.72), (0.74, 0.72))),
    4: (((0.28, 0.28), (0.72, 0.28), (0.28, 0.72), (0.72, 0.72)),),
}


def _several(rng: random.Random, colours: list[str]) -> tuple[tuple[Item, ...], str]:
    count = rng.choice((2, 2, 2, 3, 3, 4))
    shape, colour = rng.choice(SHAPES), colours[0]
    small = rng.random() < 0.2
    spots = rng.choice(_ROWS[count])
    radius = rng.uniform(0.09, 0.11) if small else rng.uniform(0.13, 0.145 if count == 3 else 0.17)
    turn = _turn(rng)
    items = tuple(
        Item(
            shape=shape,
            colour=colour,
            x=x + rng.uniform(-0.02, 0.02),
            y=y + rng.uniform(-0.02, 0.02),
            radius=radius,
            turn=turn,
        )
        for x, y in spots
    )
    return items, f"{COUNTS[count]} {'small ' if small else ''}{colour} {plural(shape)}"


def _pair(rng: random.Random, colours: list[str]) -> tuple[tuple[Item, ...], str]:
    shapes = (rng.choice(SHAPES), rng.choice(SHAPES))
    pair_colours = (colours[0], colours[1])
    beside = rng.random() < 0.6
    spots = ((0.28, 0.5), (0.72, 0.5)) if beside else ((0.5, 0.27), (0.5, 0.73))
    radius = rng.uniform(0.14, 0.19)
    items = tuple(
        Item(
            shape=shape,
            colour=colour,
            x=x + rng.uniform(-0.02, 0.02),
            y=y + rng.uniform(-0.02, 0.02),
            radius=radius,
            turn=_turn(rng),
        )
        for shape, colour, (x, y) in zip(shapes, pair_colours, spots, strict=True)
    )
    names = [with_article(f"{colour} {shape}") for shape, colour in zip(shapes, pair_colours, strict=True)]
    link = rng.choice((" and ", " and ", " next to ", " left of ")) if beside else rng.choice((" above ", " over "))
    return items, link.join(names)


def held_out(shape: str, colour: str, background: str) -> bool:
    """Whether a single `shape` of `colour` on `background` is kept from the training pictures."""
    names = tuple(COLOURS)
    return (SHAPES.index(shape) + 3 * names.index(colour) + 5 * names.index(background)) % 7 == 0


def random_scene(rng: random.Random) -> Scene:
    """A scene with one object (70%), several alike (18%) or two different ones (12%); never a held-out one."""
    while True:
        colours = rng.sample(tuple(COLOURS), 3)
        kind = rng.random()
        make = _single if kind < 0.70 else _several if kind < 0.88 else _pair
        items, subject = make(rng, colours)
        if len(items) > 1 or not held_out(items[0].shape, colours[0], colours[2]):
            return Scene(items=items, background=colours[2], subject=subject)


def caption(scene: Scene, rng: random.Random) -> str:
    """One of several ways to say `scene`; sometimes silent about the background or the object's details."""
    style = rng.random()
    if style < 0.62:
        return f"{scene.subject} on {with_article(scene.background)} background"
    if style < 0.72:
        return f"{scene.subject}, {scene.background} background"
    if style < 0.80:
        return f"{scene.subject} on {scene.background}"
    if style < 0.86:
        return (
            f"a {rng.choice(('picture', 'drawing'))} of {scene.subject} on {with_article(scene.background)} background"
        )
    if style < 0.94:
        return scene.subject
    return f"{with_article(scene.background)} background"


def _polygon(shape: str, radius: float) -> list[tuple[float, float]]:
    """Corners of `shape` around the origin, y downwards, in the units of `radius`."""
    if shape == "square":
        side = radius * 0.86
        return [(-side, -side), (side, -side), (side, side), (-side, side)]
    if shape == "diamond":
        return [(0, -radius * 1.08), (radius * 0.78, 0), (0, radius * 1.08), (-radius * 0.78, 0)]
    if shape == "triangle":
        return [(0, -radius), (radius * 0.98, radius * 0.74), (-radius * 0.98, radius * 0.74)]
    if shape == "cross":
        arm, half = radius * 0.95, radius * 0.32
        return [
            (-half, -arm),
            (half, -arm),
            (half, -half),
            (arm, -half),
            (arm, half),
            (half, half),
            (half, arm),
            (-half, arm),
            (-half, half),
            (-arm, half),
            (-arm, -half),
            (-half, -half),
        ]
    if shape == "star":
        return [
            (
                math.sin(i * math.pi / 5) * radius * (1.08 if i % 2 == 0 else 0.46),
                -math.cos(i * math.pi / 5) * radius * (1.08 if i % 2 == 0 else 0.46),
            )
            for i in range(10)
        ]
    if shape == "heart":
        scale = radius / 16.5
        return [
            (
                scale * 16 * math.sin(t) ** 3,
                -scale * (13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t))
                - radius * 0.1,
            )
            for t in (i * 2 * math.pi / 60 for i in range(60))
        ]
    raise ValueError(f"No polygon for the shape {shape!r}; polygons are square, diamond, triangle, cross, star, heart.")


def _jitter(name: str, rng: random.Random) -> tuple[int, int, int]:
    red, green, blue = (max(0, min(255, value + rng.randint(-9, 9))) for value in COLOURS[name])
    return red, green, blue


def draw(scene: Scene, size: int, rng: random.Random) -> Image.Image:
    """Paints `scene` as an RGB picture of `size` × `size` pixels, anti-aliased; `rng` varies the tones a little."""
    canvas = size * SUPERSAMPLING
    ground = _jitter(scene.background, rng)
    image = Image.new("RGB", (canvas, canvas), ground)
    pen = ImageDraw.Draw(image)
    for item in scene.items:
        colour = _jitter(item.colour, rng)
        x, y, radius = item.x * canvas, item.y * canvas, item.radius * canvas
        if item.shape in ("circle", "ring"):
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
            if item.shape == "ring":
                hole = radius * 0.55
                pen.ellipse((x - hole, y - hole, x + hole, y + hole), fill=ground)
            continue
        cosine, sine = math.cos(math.radians(item.turn)), math.sin(math.radians(item.turn))
        corners = [
            (x + px * cosine - py * sine, y + px * sine + py * cosine) for px, py in _polygon(item.shape, radius)
        ]
        pen.polygon(corners, fill=colour)
    return image.resize((size, size), Image.Resampling.BOX)
