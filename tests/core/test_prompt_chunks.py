"""Tokens into chunks of 75, and their count."""

from __future__ import annotations

import pytest

from webui.core.prompt.chunks import Chunk, Run, make_chunks, plain_runs
from webui.core.prompt.counting import TokenCount, count_tokens
from webui.core.prompt.emphasis import parse_emphasis

COMMA = 267


class Words:
    """A tokenizer of whole words: word i of a fixed list is token i, a comma is CLIP's."""

    def encode(self, text):
        return [COMMA if word == "," else int(word) if word.isdigit() else 1 for word in text.split()]


def words(count, start=1000):
    return " ".join(str(start + index) for index in range(count))


def chunks(text):
    return make_chunks(plain_runs(parse_emphasis(text), Words()), COMMA)


def test_an_empty_prompt_is_one_chunk():
    assert chunks("") == (Chunk(),)


def test_weights_follow_their_tokens():
    (chunk,) = chunks("1 (2 3:1.5) 4")
    assert chunk.tokens == (1, 2, 3, 4)
    assert chunk.weights == (1.0, 1.5, 1.5, 1.0)


@pytest.mark.parametrize(("count", "rows"), [(74, 1), (75, 1), (76, 2), (150, 2), (151, 3)])
def test_every_75_tokens_make_a_chunk(count, rows):
    made = chunks(words(count))
    assert len(made) == rows
    assert all(len(chunk.tokens) == len(chunk.weights) <= 75 for chunk in made)
    assert [token for chunk in made for token in chunk.tokens] == list(range(1000, 1000 + count))


# Where the first chunk ends when its last comma is token number n (from 0), by the rule "within the last 20".
@pytest.mark.parametrize(("comma", "end"), [(54, 75), (55, 56), (60, 61), (73, 74), (74, 75)])
def test_a_full_chunk_ends_at_a_late_comma(comma, end):
    first, second = chunks(f"{words(comma)} , {words(90 - comma, 2000)}")
    assert len(first.tokens) == end
    assert second.tokens[0] == 2000 + (end - comma - 1)


def test_a_comma_that_would_begin_a_chunk_does():
    first, second = chunks(f"{words(60)} , {words(14, 2000)} , {words(3, 3000)}")
    assert len(first.tokens) == 75
    assert second.tokens == (COMMA, 3000, 3001, 3002)


def test_the_comma_of_an_earlier_chunk_is_not_reached_for():
    made = chunks(f"{words(60)} , {words(100, 2000)}")
    assert [len(chunk.tokens) for chunk in made] == [61, 75, 25]


def test_break_fills_the_chunk_up():
    assert [chunk.tokens for chunk in chunks("1 2 BREAK 3")] == [(1, 2), (3,)]
    assert [chunk.tokens for chunk in chunks("1 BREAK BREAK 3 BREAK")] == [(1,), (), (3,)]
    assert [chunk.tokens for chunk in chunks("BREAK")] == [()]
    assert [len(chunk.tokens) for chunk in chunks(f"{words(75)} BREAK 3")] == [75, 1]


def placed(*runs):
    return make_chunks([runs], COMMA)


def test_embeddings_stay_whole():
    first, second = placed(Run(range(70), 1.0), Run((0,) * 6, 1.3, "style"), Run((9,), 1.0))
    assert (len(first.tokens), first.embeddings) == (70, ())
    assert second.tokens == (0,) * 6 + (9,)
    assert second.weights == (1.3,) * 6 + (1.0,)
    assert second.embeddings == ((0, "style"),)
    (whole,) = placed(Run(range(69), 1.0), Run((0,) * 6, 1.0, "style"))
    assert whole.embeddings == ((69, "style"),)


def test_embeddings_move_with_the_phrase_after_a_comma():
    first, second = placed(Run((*range(60), COMMA), 1.0), Run((0,) * 4, 1.0, "style"), Run(range(500, 515), 1.0))
    assert (len(first.tokens), first.embeddings) == (61, ())
    assert second.embeddings == ((0, "style"),)
    assert second.tokens == (0, 0, 0, 0, *range(500, 515))


@pytest.mark.parametrize(
    ("prompt", "per_chunk"),
    [
        ("", (0,)),
        ("1 2 3", (3,)),
        ("1 (2 3:1.4) # not 4 5", (3,)),
        ("1 <lora:style:0.8> 2", (2,)),
        ("1 2 BREAK 3", (2, 1)),
        ("1 AND 1 2 3", (3,)),
        ("1 [2:3 4:0.5]", (3,)),
        ("[1|2 3]", (2,)),
        (words(80), (75, 5)),
    ],
)
def test_tokens_are_counted_by_chunk(prompt, per_chunk):
    assert count_tokens(prompt, Words()) == TokenCount(per_chunk)


def test_a_count_says_what_is_used_and_what_there_is():
    assert (TokenCount((12,)).used, TokenCount((12,)).room) == (12, 75)
    assert (TokenCount((2, 1)).used, TokenCount((2, 1)).room) == (76, 150)
