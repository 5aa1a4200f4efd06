"""The drawings that the model learns from: emoji art of three hands, packed once into one file.

`pack` reads the npm packages that carry the art (fetched by ``npm pack``) and writes ``art.zip``: an index and one
256-pixel WebP a drawing. `Art` opens it. Every source has a clear licence, named in `SOURCES`. Flags, symbols and
whatever carries letters or digits are left out; people come in the five skin tones alike.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import subprocess
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

logger = logging.getLogger(__name__)

SIDE = 256
STYLES = ("3d", "flat", "cartoon")

# npm package and version → what it gives and its licence.
SOURCES = {
    "@lobehub/fluent-emoji-3d@1.1.0": "3d style, Microsoft Fluent Emoji, MIT",
    "@iconify-json/fluent-emoji-flat@1.2.6": "flat style, Microsoft Fluent Emoji, MIT",
    "@iconify-json/noto@1.2.9": "cartoon style, Google Noto Emoji, Apache-2.0",
    "unicode-emoji-json@0.9.0": "names and groups, MIT",
    "emojilib@4.0.3": "keywords, MIT",
}

_LEFT_OUT_GROUPS = ("Flags", "Symbols")
# Parts of names whose drawings carry letters, digits or signs.
_CARRY_TEXT = ("place medal", "calendar", "sign", "atm", "newspaper", "8 ball", "keycap", "button", "money", "banknote")
_TONES = ("1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff")
_TONE_NAMES = ("light", "medium-light", "medium", "medium-dark", "dark")

# What people call a thing where its Unicode name is clumsy.
_PLAIN_NAMES = {
    "red apple": "apple",
    "cherries": "cherry",
    "tangerine": "orange fruit",
    "automobile": "car",
    "hot beverage": "cup of coffee",
    "grinning face": "smiley",
    "evergreen tree": "fir tree",
    "deciduous tree": "tree",
    "wrapped gift": "gift",
    "red heart": "heart",
    "honeybee": "bee",
    "lady beetle": "ladybug",
    "jack-o-lantern": "pumpkin",
    "soft ice cream": "ice cream",
    "doughnut": "donut",
    "birthday cake": "cake",
    "delivery truck": "truck",
    "gem stone": "diamond gem",
    "light bulb": "lamp",
    "grinning cat": "happy cat",
    "crying cat": "sad cat",
    "pouting cat": "angry cat",
    "cloud with lightning": "thunder cloud",
    "cheese wedge": "cheese",
    "cooked rice": "bowl of rice",
    "top hat": "hat",
    "four leaf clover": "clover",
}

# The subjects of the small preset, by the names above: few enough for an hour on a CPU, and what people ask for first.
FAVOURITES: tuple[str, ...] = (
    *("apple", "banana", "strawberry", "lemon", "watermelon", "pineapple", "cherry", "carrot", "mushroom"),
    *("pizza", "hamburger", "donut", "cake", "ice cream", "cup of coffee"),
    *("cat", "happy cat", "dog", "fox", "panda", "rabbit", "frog", "pig", "lion", "unicorn", "penguin", "owl"),
    *("whale", "octopus", "fish", "turtle", "butterfly", "bee", "ladybug"),
    *("sunflower", "rose", "cactus", "palm tree", "fir tree"),
    *("smiley", "ghost", "robot", "alien", "snowman", "pumpkin", "heart", "sun", "crescent moon", "rainbow", "cloud"),
    *("house", "castle", "car", "rocket", "airplane", "sailboat", "balloon", "gift", "crown", "guitar", "umbrella"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sprite:
    """One drawing in the pack: what it shows in plain words, other words for it, whose hand, and its file there."""

    subject: str
    words: tuple[str, ...]
    style: str
    file: str


def plain_name(name: str) -> str:
    """A Unicode name as people say it: "tiger face" is "tiger"."""
    return _PLAIN_NAMES.get(name, name.removesuffix(" face") if name.count(" ") == 1 else name)


class Art:
    """The packed drawings, read on demand."""

    def __init__(self, path: Path) -> None:
        self._zip = zipfile.ZipFile(path)
        rows: list[dict[str, Any]] = json.loads(self._zip.read("index.json"))
        self.sprites = tuple(Sprite(**{**row, "words": tuple(row["words"])}) for row in rows)

    def image(self, sprite: Sprite) -> Image.Image:
        """The drawing: RGBA, `SIDE` pixels square."""
        return Image.open(io.BytesIO(self._zip.read(sprite.file))).convert("RGBA")


def fetch(folder: Path) -> None:
    """Downloads the packages of `SOURCES` into `folder` with ``npm pack``; raises `CalledProcessError`."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["npm", "pack", "--silent", *SOURCES], cwd=folder, check=True)


def pack(downloads: Path, out: Path) -> None:
    """Writes the pack `out` from the npm archives in `downloads`."""
    sprites: list[Sprite] = []
    with contextlib.ExitStack() as opened:
        archives = {
            path.name.rsplit("-", 1)[0]: opened.enter_context(tarfile.open(path)) for path in downloads.glob("*.tgz")
        }
        target = opened.enter_context(zipfile.ZipFile(out.with_suffix(".partial"), "w", zipfile.ZIP_STORED))
        for name, words, style, image in _drawings(archives):
            file = f"{len(sprites):04d}.webp"
            data = io.BytesIO()
            image.save(data, "WEBP", quality=88, method=4)
            target.writestr(file, data.getvalue())
            sprites.append(Sprite(subject=plain_name(name), words=words, style=style, file=file))
        target.writestr("index.json", json.dumps([asdict(sprite) for sprite in sprites]))
    out.with_suffix(".partial").replace(out)
    logger.info("packed %d drawings into %s, %.1f MB", len(sprites), out, out.stat().st_size / 1e6)


def _drawings(archives: dict[str, tarfile.TarFile]) -> Iterator[tuple[str, tuple[str, ...], str, Image.Image]]:
    """Name, keywords, style and picture of every drawing that is used."""
    names: dict[str, Any] = _json(archives["unicode-emoji-json"], "package/data-by-emoji.json")
    keywords: dict[str, list[str]] = _json(archives["emojilib"], "package/dist/emoji-en-US.json")
    solid = archives["lobehub-fluent-emoji-3d"]
    solid_files = {Path(name).stem: name for name in solid.getnames() if name.endswith(".webp")}
    drawn = {
        "flat": _json(archives["iconify-json-fluent-emoji-flat"], "package/icons.json"),
        "cartoon": _json(archives["iconify-json-noto"], "package/icons.json"),
    }
    for emoji, facts in names.items():
        name = facts["name"].lower()
        if facts["group"] in _LEFT_OUT_GROUPS or any(part in name for part in _CARRY_TEXT):
            continue
        words = tuple(word for word in keywords.get(emoji, ()) if word.isalpha() and word.isascii())
        # One tone a person, by a checksum of the name: over all people the tones come out even.
        tone = zlib.crc32(name.encode()) % 5 if facts["skin_tone_support"] else None
        codes = [f"{ord(character):04x}" for character in emoji]
        toned = [codes[0], _TONES[tone], *(code for code in codes[1:] if code != "fe0f")] if tone is not None else codes
        for candidate in ("-".join(toned), "-".join(code for code in toned if code != "fe0f")):
            if candidate in solid_files:
                file = solid.extractfile(solid_files[candidate])
                assert file is not None
                yield name, words, "3d", Image.open(file).convert("RGBA").resize((SIDE, SIDE))
                break
        slug = facts["slug"].replace("_", "-")
        for style, icons in drawn.items():
            icon = f"{slug}-{_TONE_NAMES[tone]}" if tone is not None else slug
            if icon in icons["icons"]:
                yield name, words, style, _rendered(icons, icon)


def _json(archive: tarfile.TarFile, member: str) -> Any:
    file = archive.extractfile(member)
    assert file is not None
    return json.load(file)


def _rendered(icons: dict[str, Any], name: str) -> Image.Image:
    import resvg_py

    icon = icons["icons"][name]
    width, height = icon.get("width", icons.get("width", 16)), icon.get("height", icons.get("height", 16))
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">{icon["body"]}</svg>'
    return Image.open(io.BytesIO(resvg_py.svg_to_bytes(svg_string=svg, width=SIDE, height=SIDE))).convert("RGBA")
