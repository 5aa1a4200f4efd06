"""AND, comments and styles."""

from __future__ import annotations

import random

import pytest

from webui.core.prompt.composition import Part, parse_negative, parse_prompt, render_prompt
from webui.core.prompt.editing import Scheduled
from webui.core.prompt.texts import merge_styles, strip_comments

EXAMPLES = {
    "": [("", 1.0)],
    "a cat": [("a cat", 1.0)],
    "a cat AND a dog": [("a cat", 1.0), ("a dog", 1.0)],
    "a cat :1.2 AND a dog:-.5 ": [("a cat", 1.2), ("a dog", -0.5)],
    "a AND AND b": [("a", 1.0), ("", 1.0), ("b", 1.0)],
    "SAND AND sand": [("SAND", 1.0), ("sand", 1.0)],
    "a and b": [("a and b", 1.0)],
    "(a AND b:2)": [("(a", 1.0), ("b:2)", 1.0)],
    "score: 7": [("score", 7.0)],
    "time 12:30 AND b": [("time 12", 30.0), ("b", 1.0)],
    "a:1:2": [("a:1", 2.0)],
    "a:+3. AND b:x": [("a", 3.0), ("b:x", 1.0)],
    "a:" + "9" * 400: [("a", 1e6)],
}


@pytest.mark.parametrize("prompt", EXAMPLES)
def test_parts_and_weights(prompt):
    wanted = tuple(Part((text,) if text else (), weight) for text, weight in EXAMPLES[prompt])
    assert parse_prompt(prompt) == wanted


def test_each_part_is_edited_by_itself():
    assert parse_prompt("[a:b:3] AND c:2") == (Part((Scheduled(("a",), ("b",), "3"),)), Part(("c",), 2.0))


def test_and_is_a_word_in_a_negative_prompt():
    assert parse_negative("a AND b:2 # no") == ("a AND b:2 ",)


def test_rendering_and_reading_again_gives_the_same_parts():
    random_source = random.Random(7)
    pieces = ["a", " b ", " AND ", "AND", ":1.5", ":", "2", "[c:d:3]", "[e|f]", "#no\n", "\n", "(g:1.2)", "|", ".5"]
    for _ in range(3000):
        parts = parse_prompt("".join(random_source.choices(pieces, k=random_source.randint(0, 10))))
        assert parse_prompt(render_prompt(parts)) == parts, render_prompt(parts)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("a cat # with a hat", "a cat "),
        ("a cat, # one\na dog", "a cat, \na dog"),
        ("a\n# a whole line\nb", "a\nb"),
        ("# first\na", "a"),
        ("a\n#last", "a\n"),
        ("no comment", "no comment"),
        ("#" * 5, ""),
    ],
)
def test_comments_go(text, left):
    assert strip_comments(text) == left


@pytest.mark.parametrize(
    ("prompt", "styles", "merged"),
    [
        ("a cat", [], "a cat"),
        ("a cat", ["oil painting"], "a cat, oil painting"),
        ("a cat", ["photo of {prompt}, 35mm"], "photo of a cat, 35mm"),
        ("a cat", ["photo of {prompt}", "film grain"], "photo of a cat, film grain"),
        ("", ["oil painting"], "oil painting"),
        (" a cat ", ["", "  "], " a cat "),
        ("a {prompt}", ["<{prompt}>"], "<a {prompt}>"),
        ("x", ["{prompt} and {prompt}"], "x and x"),
    ],
)
def test_styles_are_merged_in_order(prompt, styles, merged):
    assert merge_styles(prompt, styles) == merged
