"""File name patterns: filled in, read back, and refused where they could not name files."""

from __future__ import annotations

import pytest

from webui.core.errors import UserError
from webui.core.filenames import DEFAULT_PATTERN, NamePattern


@pytest.mark.parametrize(
    ("pattern", "stem"),
    [
        (DEFAULT_PATTERN, "00042-7"),
        ("[number]", "00042"),
        ("[seed] ([number])", "7 (00042)"),
        ("my.cat [number].[seed]", "my.cat 00042.7"),
        ("画 [number]", "画 00042"),
    ],
)
def test_patterns_are_filled_in_and_read_back(pattern, stem):
    names = NamePattern.parse(pattern)
    assert names.stem(number=42, seed=7) == stem
    assert names.number_in(stem) == 42
    assert names.number_in(names.stem(number=123_456, seed=0)) == 123_456


@pytest.mark.parametrize("stem", ["", "42-7", "00042-", "00042-7 copy", "x00042-7", "00042--7", "٠٠٠٤٢-7"])
def test_other_names_have_no_number(stem):
    assert NamePattern.parse(DEFAULT_PATTERN).number_in(stem) is None


@pytest.mark.parametrize(
    "pattern",
    ["", "[seed]", "[number][number]", "[number] [number]", "[number][seed]", "1[number]", "[number]2",
     "[model]-[number]",
     "../[number]", "a/[number]", "a\\[number]", "a:[number]", ".[number]", "[number].", " [number]", "[number]\n",
     "[Number]-[number]", "[number]-]", "a\0[number]", "x" * 80 + "[number]"],
)  # fmt: skip
def test_patterns_that_cannot_name_files_are_refused(pattern):
    with pytest.raises(UserError, match=r"The file name pattern .*; try \[number\]-\[seed\]\."):
        NamePattern.parse(pattern)
