"""Emphasis and BREAK: A1111's weights, and no text that gives nonsense."""

from __future__ import annotations

import itertools
import math
import random
import re

import pytest

from webui.core.prompt.emphasis import WEIGHT_LIMIT, Fragment, decimal, parse_emphasis, render_emphasis

# What A1111 makes of each prompt, by its documented rules (shared knowledge of prompt guides: 1.1 a bracket).
EXAMPLES = {
    "normal text": [("normal text", 1.0)],
    "": [],
    "()": [],
    "an (important) word": [("an ", 1.0), ("important", 1.1), (" word", 1.0)],
    "a [weaker] word": [("a ", 1.0), ("weaker", 1 / 1.1), (" word", 1.0)],
    "(unbalanced": [("unbalanced", 1.1)],
    "(un[balanced": [("un", 1.1), ("balanced", 1.0)],
    "never) opened]": [("never) opened]", 1.0)],
    r"\(literal\]": [("(literal]", 1.0)],
    r"(a \(b\) c:1.5)": [("a (b) c", 1.5)],
    r"a\\b": [("a\\b", 1.0)],
    r"a\b": [("ab", 1.0)],
    "(unnecessary)(parens)": [("unnecessaryparens", 1.1)],
    "(a:1.3) b": [("a", 1.3), (" b", 1.0)],
    "(a: .5 )": [("a", 0.5)],
    "(a:-1)(b:0)": [("a", -1.0), ("b", 0.0)],
    "a:1.3) b": [("a:1.3) b", 1.0)],
    "[a:1.3]": [("a:1.3", 1 / 1.1)],
    "(a:b)": [("a:b", 1.1)],
    "(a:1.2.3)": [("a:1.2.3", 1.1)],
    "(a [b) c]": [("a ", 1.1), ("b", 1.0), (" c", 1 / 1.1)],
    "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).": [
        ("a ", 1.0),
        ("house", 1.3 * 1.1**2),
        (" ", 1.1),
        ("on", 1.0),
        (" a ", 1.1),
        ("hill", 0.55),
        (", sun, ", 1.1),
        ("sky", 1.1**4),
        (".", 1.1),
    ],
}


@pytest.mark.parametrize("prompt", EXAMPLES)
def test_reads_emphasis_as_a1111_does(prompt):
    (fragments,) = parse_emphasis(prompt)
    assert [fragment.text for fragment in fragments] == [text for text, _ in EXAMPLES[prompt]]
    assert [fragment.weight for fragment in fragments] == pytest.approx([weight for _, weight in EXAMPLES[prompt]])


def test_a_closed_bracket_leaves_exactly_the_weight_it_found():
    assert parse_emphasis("((((a:1.37)):0.3) [[b]]) c")[-1][-1] == Fragment(" c", 1.0)


@pytest.mark.parametrize(
    "prompt",
    [
        "(" * 100_000,
        "[" * 100_000,
        "(" * 33_000 + "a" + ")" * 33_000,
        "(" * 20_000 + "a" + ":9)" * 20_000,
        "[" * 33_000 + "(a:0)" + "]" * 33_000,
        "(a:" + "1" * 100_000,
        "(a:" + "1" * 100_000 + ")",
        "(" + ":" * 100_000,
        "(a:" + " " * 100_000,
        "(:" * 50_000,
        "([" * 25_000 + ")]" * 25_000,
        "\\" * 100_001,
    ],
    ids=lambda prompt: repr(prompt[:6]),
)
def test_long_nonsense_is_read_to_finite_weights(prompt):
    (fragments,) = parse_emphasis(prompt)
    assert all(math.isfinite(fragment.weight) and abs(fragment.weight) <= WEIGHT_LIMIT for fragment in fragments)


def test_any_text_keeps_its_words_in_order():
    random_source = random.Random(20)
    for _ in range(500):
        prompt = "".join(
            random_source.choice(["(", ")", "[", "]", ":1.2)", "a ", "bc", "é", ",", "\n"]) for _ in range(30)
        )
        (fragments,) = parse_emphasis(prompt)
        read = "".join(fragment.text for fragment in fragments)
        letters = re.compile("[abcé,\n]+")
        assert "".join(letters.findall(read)) == "".join(letters.findall(prompt))


def test_escaped_text_comes_back_as_it_was():
    random_source = random.Random(21)
    for _ in range(300):
        text = "".join(random_source.choice("()[]\\:1.a é") for _ in range(20))
        escaped = re.sub(r"([()\[\]\\])", r"\\\1", text)
        assert parse_emphasis(escaped) == ((Fragment(text, 1.0),),)


def test_break_divides_and_takes_the_space_around_it_along():
    a, b, loud = Fragment("a", 1.0), Fragment("b", 1.0), Fragment("a", 1.1)
    assert parse_emphasis("a BREAK b") == parse_emphasis("a\n\nBREAK   b") == ((a,), (b,))
    assert parse_emphasis("BREAK a BREAK BREAK b") == ((), (a,), (), (b,))
    assert parse_emphasis("a BREAK") == ((a,), ())
    assert parse_emphasis("(a BREAK a)") == ((loud,), (loud,))
    for word in ("aBREAK b", "BREAKING b", "break b", "BRE\\AK b"):
        assert len(parse_emphasis(word)) == 1


def test_rendering_and_reading_again_gives_the_same_fragments():
    random_source = random.Random(23)
    pieces = [
        "(",
        ")",
        "[",
        "]",
        ":1.2)",
        ":",
        "\\",
        "\\(",
        "a ",
        " b",
        "BREAK",
        " BREAK ",
        "BRE\\AK",
        "(c:-0.3)",
        "1.5",
        "\n",
    ]
    for _ in range(2000):
        sections = parse_emphasis("".join(random_source.choices(pieces, k=random_source.randint(0, 12))))
        assert parse_emphasis(render_emphasis(sections)) == sections, render_emphasis(sections)


@pytest.mark.parametrize("number", [1.0, -0.1, 1.1**4, 1 / 3, 1e-20, 1e6, 123456.789])
def test_weights_are_written_without_exponents(number):
    assert float(decimal(number)) == number
    assert "e" not in decimal(number).lower()


def test_neighbours_differ_in_weight():
    random_source = random.Random(22)
    for _ in range(300):
        (fragments,) = parse_emphasis("".join(random_source.choice("()[]ab") for _ in range(40)))
        weights = [fragment.weight for fragment in fragments]
        assert all(left != right for left, right in itertools.pairwise(weights))
