"""Prompt editing: which text holds at which step, and what is left as text."""

from __future__ import annotations

import random
import sys

import pytest

from webui.core.prompt.editing import (
    MAX_DEPTH,
    Alternate,
    Pass,
    Scheduled,
    parse_editing,
    render_editing,
    texts_by_step,
)

# prompt → (last step, text), in a run of 10 steps. By the inventory's rules (shared/reference/a1111-inventory.md); a
# reading of them by an Earley parser with the documented grammar agreed on 1,490 of 1,500 random balanced texts, the
# others having a bracket that is mere text right beside an edit.
EXAMPLES = {
    "": [(10, "")],
    "plain (text:1.2) [weak]": [(10, "plain (text:1.2) [weak]")],
    "a [b:3] c": [(3, "a  c"), (10, "a b c")],
    "a [b: 3 ] c": [(3, "a  c"), (10, "a b c")],
    "a [b:c:0.5]": [(5, "a b"), (10, "a c")],
    "a [b::.25]": [(2, "a b"), (10, "a ")],
    "a [b:c:0]": [(10, "a c")],
    "a [b:c:-3]": [(10, "a c")],
    "a [b:c:99]": [(10, "a b")],
    "a [b:c:1e1]": [(10, "a b")],
    "[(a:2):3]": [(3, ""), (10, "(a:2)")],
    "x[a:[b:c:2]:1]y": [(1, "xay"), (2, "xby"), (10, "xcy")],
    "a [[[b]]:2]": [(2, "a "), (10, "a [[b]]")],
    "[x [a:b:4] y:z:6]": [(4, "x a y"), (6, "x b y"), (10, "z")],
    # not edits
    "a [unclosed": [(10, "a [unclosed")],
    "[a:b]": [(10, "[a:b]")],
    "[a:b:c]": [(10, "[a:b:c]")],
    "[a:b:c:3]": [(10, "[a:b:c:3]")],
    "[a:(b:3]": [(10, "[a:(b:3]")],
    "[a:b:3x]": [(10, "[a:b:3x]")],
    r"\[a:b:3\]": [(10, r"\[a:b:3\]")],
    r"[a\::3]": [(3, ""), (10, r"a\:")],
    # one that is beside others that are none
    "(((a] [:b:c [d:3]": [(3, "(((a] [:b:c "), (10, "(((a] [:b:c d")],
    "(a:b:c [d:3])": [(3, "(a:b:c )"), (10, "(a:b:c d)")],
    # a bar outside alternation, or a backslash before nothing, and nothing is edited
    "a | [b:c:3]": [(10, "a | [b:c:3]")],
    "(a|b) [c:3]": [(10, "(a|b) [c:3]")],
    "[a|b [c:3]": [(10, "[a|b [c:3]")],
    "[a|b:3]": [(10, "[a|b:3]")],
    "[a:3]\\": [(10, "[a:3]\\")],
    "\\\n[a:3]": [(10, "\\\n[a:3]")],
}


@pytest.mark.parametrize("prompt", EXAMPLES)
def test_texts_hold_as_long_as_said(prompt):
    assert list(texts_by_step(parse_editing(prompt), Pass(steps=10))) == EXAMPLES[prompt]


def test_alternation_takes_turns():
    def turns(prompt, steps):
        return [span.text for span in texts_by_step(parse_editing(prompt), Pass(steps=steps))]

    assert turns("[cow|horse] in a field", 4) == ["cow in a field", "horse in a field"] * 2
    assert turns("[fe|]male", 3) == ["female", "male", "female"]
    assert turns("[|]", 3) == [""]
    assert turns("[(a:1.1)|[b:c:2]]", 4) == ["(a:1.1)", "b", "(a:1.1)", "c"]
    # Equal neighbours are one span: two empty options, then the first again.
    assert [tuple(span) for span in texts_by_step(parse_editing("[a|||]"), Pass(steps=5))] == [
        (1, "a"),
        (4, ""),
        (5, "a"),
    ]


def test_the_second_pass_goes_on_counting():
    hires = Pass(steps=8, earlier=20)

    def texts(prompt):
        return [tuple(span) for span in texts_by_step(parse_editing(prompt), hires)]

    assert texts("[a:b:1.5]") == [(4, "a"), (8, "b")]
    assert texts("[a:b:0.5]") == [(8, "b")]
    assert texts("[a:b:10]") == [(8, "b")]
    assert texts("[a:b:22]") == [(2, "a"), (8, "b")]
    assert texts_by_step(parse_editing("[a:b:1.5]"), Pass(steps=20)) == ((20, "a"),)


@pytest.mark.parametrize("number", ["9" * 400, "-" + "9" * 400, "1e999", "-1e999", "0." + "0" * 400])
def test_numbers_beyond_all_steps_are_the_first_or_the_last(number):
    assert Pass(steps=10).step(number) in (0, 10)


def test_the_tree_says_what_was_read():
    assert parse_editing(r"a \[ [b:c: 3 ][d|]") == (
        r"a \[ ",
        Scheduled(("b",), ("c",), "3"),
        Alternate((("d",), ())),
    )


def test_rendering_and_reading_again_gives_the_same_tree():
    random_source = random.Random(5)
    pieces = [
        "[",
        "]",
        "(",
        ")",
        ":",
        "|",
        "a",
        " b",
        "0.5",
        ":3]",
        "[c:",
        "[x|y]",
        "\\[",
        "\\\\",
        "\\",
        "\n",
        ": .5 ]",
    ]
    weights = [6, 6, 2, 2, 5, 1, 3, 3, 2, 4, 4, 2, 1, 1, 0.2, 1, 3]
    edited = 0
    for _ in range(5000):
        tree = parse_editing("".join(random_source.choices(pieces, weights, k=random_source.randint(0, 16))))
        edited += any(not isinstance(piece, str) for piece in tree)
        assert parse_editing(render_editing(tree)) == tree, render_editing(tree)
    assert edited > 500


def random_tree(random_source, depth):
    """A tree of escaped words, with no two texts side by side."""
    pieces = []
    for _ in range(random_source.randint(0, 3)):
        kind = random_source.random()
        if depth == 0 or kind < 0.4:
            if not pieces or not isinstance(pieces[-1], str):
                pieces.append(random_source.choice(["a", " b c", r"\[d\]", "(e:1.2)", "0.5", "[f]"]))
        elif kind < 0.7:
            before, after = random_tree(random_source, depth - 1), random_tree(random_source, depth - 1)
            pieces.append(Scheduled(before, after, random_source.choice(["3", "0.5", "1.", "-2", "1e2"])))
        else:
            options = tuple(random_tree(random_source, depth - 1) for _ in range(random_source.randint(2, 3)))
            pieces.append(Alternate(options))
    return tuple(pieces)


def test_every_tree_can_be_written_and_read():
    random_source = random.Random(6)
    for _ in range(1000):
        tree = random_tree(random_source, 4)
        assert parse_editing(render_editing(tree)) == tree


LONG = 100_000
NONSENSE = [
    "[" * LONG,
    "(" * LONG,
    "]" * LONG,
    "([" * (LONG // 2),
    "[" * 33_000 + "a" + "]" * 33_000,
    "[" * 20_000 + "a" + ":3]" * 20_000,
    "[a|" * 16_000 + "b" + "]" * 16_000,
    "(" * 20_000 + "[a:3]" + ":1)" * 20_000,
    "[a:b:0.5]" * 11_000,
    "[a" + "|b" * 50_000 + "]",
    "[a" + ":b" * 50_000 + ":3]",
    "[:" * 50_000,
    "\\" * LONG,
    "[a:" + "1" * LONG + "]",
]


@pytest.mark.parametrize("prompt", NONSENSE, ids=lambda prompt: repr(prompt[:6]))
def test_reading_is_linear_and_never_deep(prompt):
    """Counted, not timed: lines of the parser's own functions that run, at most a few for each character."""
    lines = 0
    deepest = 0

    def count(frame, event, argument):
        nonlocal lines, deepest
        if "webui/core/prompt" not in frame.f_code.co_filename.replace("\\", "/"):
            return None
        if event == "line":
            lines += 1
        elif event == "call":
            depth, walker = 0, frame
            while walker is not None and depth <= 4 * MAX_DEPTH:
                depth += "core/prompt" in walker.f_code.co_filename
                walker = walker.f_back
            deepest = max(deepest, depth)
        return count

    short = prompt[:1_000] + prompt[-1_000:]
    before = sys.gettrace()
    sys.settrace(count)
    try:
        tree = parse_editing(short)
        texts_by_step(tree, Pass(steps=2))
    finally:
        sys.settrace(before)
    assert lines <= 60 * len(short)
    assert deepest <= 3 * MAX_DEPTH

    whole = parse_editing(prompt)
    assert parse_editing(render_editing(whole)) == whole
