"""How pictures are named: the pattern an artist chooses, filled in and read back.

Pure, because the settings check a pattern before they keep it and the gallery fills it in. Folders and uniqueness are
the business of `webui.gallery.files`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from webui.core.errors import UserError

DEFAULT_PATTERN = "[number]-[seed]"

_PLACEHOLDER = re.compile(r"\[([a-z]*)\]")
_FORBIDDEN = re.compile(r'[/\\:*?"<>|\x00-\x1f\x7f\[\]]')
_VALUES = {"number": r"(?P<number>[0-9]{5,9})", "seed": "[0-9]{1,20}"}
_MAX_LENGTH = 80


@dataclass(frozen=True, slots=True)
class NamePattern:
    """A file name without its suffix, with `[number]` (needed once) and `[seed]`. Build it with `parse`."""

    text: str

    @classmethod
    def parse(cls, text: str) -> NamePattern:
        """Checks `text`; raises `UserError` where it could not name files on every system, or count them."""
        names = _PLACEHOLDER.findall(text)
        literal = _PLACEHOLDER.split(text)[::2]
        trouble = ""
        if unknown := [name for name in names if name not in _VALUES]:
            trouble = f"knows nothing to put for [{unknown[0]}]"
        elif names.count("number") != 1:
            trouble = "needs [number] exactly once"
        elif any(_FORBIDDEN.search(part) for part in literal):
            trouble = r'may not hold any of / \ : * ? " < > | [ ]'
        elif text != text.strip(" .") or len(text) > _MAX_LENGTH or not text.isprintable():
            trouble = f"must be at most {_MAX_LENGTH} visible characters, with no blank or point at either end"
        elif _touches_digits(text):
            trouble = "needs something other than a digit on both sides of [number]"
        if trouble:
            raise UserError(f"The file name pattern {text[:120]!r} {trouble}; try {DEFAULT_PATTERN}.")
        return cls(text)

    def stem(self, *, number: int, seed: int) -> str:
        """The file name without suffix; `number` is written with at least five digits."""
        return self.text.replace("[number]", f"{number:05d}").replace("[seed]", str(seed))

    def number_in(self, stem: str) -> int | None:
        """The number in a name that this pattern could have made, None for any other name."""
        found = self._reader().fullmatch(stem)
        return int(found["number"]) if found else None

    def _reader(self) -> re.Pattern[str]:
        parts = _PLACEHOLDER.split(self.text)
        return re.compile("".join(_VALUES[part] if index % 2 else re.escape(part) for index, part in enumerate(parts)))


def _touches_digits(text: str) -> bool:
    """Whether the number could not be told from what stands beside it."""
    before, after = text.split("[number]")
    return before[-1:].isdigit() or before.endswith("]") or after[:1].isdigit() or after.startswith("[")
