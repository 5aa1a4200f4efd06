"""What happens to a prompt as text before its grammar is read: styles are merged into it, comments leave it."""

from __future__ import annotations

import re
from collections.abc import Iterable

PLACE = "{prompt}"

# A line that is all comment goes whole; after other words, a comment reaches to the line's end.
_COMMENT_LINE = re.compile(r"(^|\n)#[^\n]*(?:\n|$)")
_COMMENT = re.compile(r"#[^\n]*")


def strip_comments(text: str) -> str:
    """`text` without what stands behind "#" on a line; "#" cannot be escaped."""
    return _COMMENT.sub("", _COMMENT_LINE.sub(r"\1", text))


def merge_styles(prompt: str, styles: Iterable[str]) -> str:
    """`prompt` with the texts of `styles` merged in, one after the other.

    Where a style says "{prompt}", the prompt takes that place; otherwise the style is appended after a comma. Empty
    styles change nothing.
    """
    for style in styles:
        if PLACE in style:
            prompt = style.replace(PLACE, prompt)
        elif style.strip():
            prompt = ", ".join(filter(None, (prompt.strip(), style.strip())))
    return prompt
