"""The "parameters" text as prompts and pairs: A1111's grammar, and nothing about what a pair means.

    text  = prompt [NL "Negative prompt: " negative] NL pair *(", " pair)
    pair  = key ": " value | key        ; bare when key equals value
    value = raw | JSON string           ; quoted where it could be misread raw

A few prompts cannot be said in that grammar, such as one with a line that begins with "Negative prompt:", or one that
begins with a space. They are written once more as a JSON string under `EXACT_PROMPT` or `EXACT_NEGATIVE`, so that
reading is the inverse of writing for every text. Everything here is pure and takes time linear in the text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from webui.core import catalogue
from webui.core.geometry import Size

NEGATIVE_MARKER = "Negative prompt:"
EXACT_PROMPT = "Prompt as written"
EXACT_NEGATIVE = "Negative prompt as written"
PAIRS_NEEDED = 3

# A1111's order. Other keys come between these and `_LAST_KEYS`, in the order given.
# fmt: off
_FIRST_KEYS = (
    "Steps", "Sampler", "Schedule type", "CFG scale", "Image CFG scale", "Seed", "Face restoration", "Size",
    "Model hash", "Model", "FP8 weight", "VAE hash", "VAE", "Variation seed", "Variation seed strength",
    "Seed resize from", "Denoising strength", "Conditional mask weight", "Clip skip", "ENSD", "Token merging ratio",
    "Token merging ratio hr", "Init image hash", "RNG", "NGMS", "Tiling",
)
# fmt: on
_LAST_KEYS = ("Version", "User")

_KEY = re.compile(r"\w[\w /-]*[\w/-]")
_NOT_KEY = re.compile(r"[^\w /-]")
_QUOTED = re.compile(r'"(?:\\.|[^\\"])*"(?=\s*(?:,|$))')
_BLANKS = re.compile(r"\s*")
_SIZE = re.compile(r"([0-9]{1,9})x([0-9]{1,9})")
_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")
_DECIMAL = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Infotext:
    """What a "parameters" text says. `pairs` holds every pair in order as raw text, with the quotes taken off."""

    prompt: str
    negative_prompt: str = ""
    pairs: dict[str, str] = field(default_factory=dict)

    @property
    def sampling(self) -> tuple[str, str]:
        """Sampler and schedule type, each "" where the text has none.

        Old joined names ("DPM++ 2M Karras") are split; a sampler without a schedule type means "Automatic", which is
        what A1111 means by leaving it out.
        """
        sampler, schedule = self.pairs.get("Sampler", ""), self.pairs.get("Schedule type", "")
        if not sampler:
            return "", schedule
        sampler, joined = catalogue.sampler_and_schedule(sampler)
        return sampler, schedule if schedule not in ("", "Automatic") else joined

    def size(self, key: str = "Size") -> Size | None:
        """The pair `key` as a size in pixels; None where it is missing or not of the form "512x768"."""
        return read_size(self.pairs.get(key, ""))

    def to_json(self) -> dict[str, Any]:
        """The text as JSON values: the well-known pairs typed and under the request's names, the others as written.

        The keys are prompt, negative_prompt and, where the text has them in readable form, steps, sampler, scheduler,
        cfg_scale, seed, width and height; then every other pair by its own name.
        """
        sampler, schedule = self.sampling
        size = self.size()
        typed: dict[str, tuple[str, Any]] = {
            "steps": ("Steps", read_whole(self.pairs.get("Steps", ""))),
            "sampler": ("Sampler", sampler or None),
            "scheduler": ("Schedule type", schedule or None),
            "cfg_scale": ("CFG scale", read_decimal(self.pairs.get("CFG scale", ""))),
            "seed": ("Seed", read_whole(self.pairs.get("Seed", ""))),
            "width": ("Size", size and size.width),
            "height": ("Size", size and size.height),
        }
        values = {name: value for name, (_, value) in typed.items() if value is not None}
        told = {key for key, value in typed.values() if value is not None}
        values = {"prompt": self.prompt, "negative_prompt": self.negative_prompt, **values}
        return values | {key: text for key, text in self.pairs.items() if key not in told and key not in values}


# ---------------------------------------------------------------------------------------------------------- writing


def write_infotext(prompt: str, negative_prompt: str, pairs: Mapping[str, str]) -> str:
    """The text that `parse_infotext` reads back, with the keys in A1111's order and empty values left out.

    It can be encoded as UTF-8 whatever the prompts hold. Raises ValueError for a key that could not be read back.
    """
    body = _encodable(prompt)
    if negative_prompt:
        body += f"\n{NEGATIVE_MARKER} {_encodable(negative_prompt)}"
    line = ", ".join(format_pair(key, pairs[key]) for key in sorted(pairs, key=_rank) if pairs[key])
    text = f"{body}\n{line}".strip()
    read = parse_infotext(text)
    for key, written, seen in (
        (EXACT_PROMPT, prompt, read.prompt),
        (EXACT_NEGATIVE, negative_prompt, read.negative_prompt),
    ):
        if written != seen:
            text += f", {key}: {_quote(written)}"
    return text


def short_number(number: float) -> str:
    """The shortest text that reads back as the same number; whole numbers have no point, as in A1111."""
    return str(int(number)) if float(number).is_integer() else repr(float(number))


def _encodable(text: str) -> str:
    """`text` with half surrogates, which JSON can smuggle into a prompt, as question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")


def format_pair(key: str, value: str) -> str:
    """One pair as text; raises ValueError for a key that could not be read back."""
    if not _KEY.fullmatch(key):
        raise ValueError(f"The infotext key {key!r} could not be read back; use letters, digits, spaces, - and /.")
    if key == value:
        return key
    misread = any(mark in value for mark in ',:\n"') or value != value.strip() or value != _encodable(value)
    return f"{key}: {_quote(value) if misread else value}"


def _quote(value: str) -> str:
    return json.dumps(value, ensure_ascii=value != _encodable(value))


def _rank(key: str) -> int:
    if key in _FIRST_KEYS:
        return _FIRST_KEYS.index(key)
    return len(_FIRST_KEYS) + (1 + _LAST_KEYS.index(key) if key in _LAST_KEYS else 0)


# ---------------------------------------------------------------------------------------------------------- reading


def parse_infotext(text: str) -> Infotext:
    """Reads any text: the last line is parameters if it holds at least three pairs, and prompt otherwise."""
    lines = [line.removesuffix("\r") for line in text.strip().split("\n")]
    pairs, counted = _read_pairs(lines[-1])
    if counted < PAIRS_NEEDED:
        pairs = {}
    else:
        del lines[-1]
    prompt, negative = _read_prompts(lines)
    prompt, negative = pairs.pop(EXACT_PROMPT, prompt), pairs.pop(EXACT_NEGATIVE, negative)
    return Infotext(prompt=prompt, negative_prompt=negative, pairs=pairs)


def _read_prompts(lines: list[str]) -> tuple[str, str]:
    """Prompt and negative prompt; a line that begins with the marker switches from one to the other."""
    prompt: list[str] = []
    negative: list[str] = []
    target = prompt
    for line in lines:
        if line.lstrip().startswith(NEGATIVE_MARKER):
            target = negative
            line = line.lstrip().removeprefix(NEGATIVE_MARKER).removeprefix(" ")
        target.append(line)
    return "\n".join(prompt), "\n".join(negative)


def _read_pairs(line: str) -> tuple[dict[str, str], int]:
    """The pairs of a line, and how many of them have a colon (bare keys alone do not make a line parameters).

    A key is the longest run of key characters before a colon that begins with a letter or a digit, wherever it stands,
    because the programs that write this text are many. Bare keys count only between commas.
    """
    pairs: dict[str, str] = {}
    counted = 0
    position = 0
    while (colon := line.find(":", position)) >= 0:
        before = line[position:colon]
        key = _NOT_KEY.split(before)[-1].lstrip(" /-").rstrip()
        if not _KEY.fullmatch(key):
            position = colon + 1
            continue
        pairs |= _bare_keys(before.split(",")[:-1])
        pairs[key], position = _read_value(line, colon + 1)
        counted += 1
    return pairs | _bare_keys(line[position:].split(",")), counted


def _bare_keys(pieces: list[str]) -> dict[str, str]:
    return {piece.strip(): piece.strip() for piece in pieces if _KEY.fullmatch(piece.strip())}


def _read_value(line: str, start: int) -> tuple[str, int]:
    """The value that begins at `start`, and where the next pair begins."""
    blanks = _BLANKS.match(line, start)
    start = blanks.end() if blanks else start
    quoted = _QUOTED.match(line, start)
    end = line.find(",", quoted.end() if quoted else start)
    end = len(line) if end < 0 else end
    if quoted:
        try:
            return json.loads(quoted[0], strict=False), end + 1
        except ValueError:  # an escape that JSON does not know: then it is text that happens to have quotes
            pass
    return line[start:end].strip(), end + 1


def read_whole(text: str) -> int | None:
    """`text` as a whole number of at most 18 digits; None where it is none."""
    return int(text) if _WHOLE.fullmatch(text) else None


def read_decimal(text: str) -> float | None:
    """`text` as a decimal number, which may be infinite but not NaN; None where it is none."""
    return float(text) if _DECIMAL.fullmatch(text) else None


def read_size(text: str) -> Size | None:
    """A text such as "512x768" as a size; None for any other text."""
    found = _SIZE.fullmatch(text)
    return Size(int(found[1]), int(found[2])) if found else None
