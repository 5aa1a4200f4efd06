"""Prompts into chunks and tensors."""

import pytest
import torch

from webui.core.prompt import parse_prompt
from webui.engine.conditioning import PromptCache, encode_prompts
from webui.engine.conditioning.chunks import make_chunks
from webui.engine.conditioning.encode import emphasise

COMMA = 267


class Words:
    """A tokenizer of whole words: word i of a fixed list is token i, a comma is CLIP's."""

    start_token, end_token, pad_token = 49406, 49407, 49407

    def encode(self, text):
        return [COMMA if word == "," else int(word) for word in text.split()]


def words(count, start=1000):
    return " ".join(str(start + index) for index in range(count))


def chunks(text):
    return make_chunks(parse_prompt(text), Words())


def test_an_empty_prompt_is_one_chunk():
    (chunk,) = chunks("")
    assert chunk.tokens == (49406, *[49407] * 76)
    assert chunk.weights == (1.0,) * 77


def test_weights_follow_their_tokens():
    (chunk,) = chunks("1 (2 3:1.5) 4")
    assert chunk.tokens[:6] == (49406, 1, 2, 3, 4, 49407)
    assert chunk.weights[:6] == (1.0, 1.0, 1.5, 1.5, 1.0, 1.0)


@pytest.mark.parametrize(("count", "rows"), [(74, 1), (75, 1), (76, 2), (150, 2), (151, 3)])
def test_every_75_tokens_make_a_chunk(count, rows):
    made = chunks(words(count))
    assert len(made) == rows
    assert all(len(chunk.tokens) == len(chunk.weights) == 77 for chunk in made)
    inside = [token for chunk in made for token in chunk.tokens if token < 49406]
    assert inside == list(range(1000, 1000 + count))


def test_a_full_chunk_ends_at_a_late_comma():
    first, second = chunks(f"{words(60)} , {words(30, 2000)}")
    assert first.tokens[61:63] == (COMMA, 49407)
    assert second.tokens[1] == 2000
    early, _ = chunks(f"{words(20)} , {words(70, 2000)}")
    assert early.tokens[75] == 2000 + 53


def test_the_real_tokenizer_and_the_text_encoder(tiny):
    encoder = tiny.text_encoders[0]
    plain, other = encode_prompts(
        ("a red circle", " ".join(["blue"] * 100)), tokenizer=encoder.tokenizer, text_encoder=encoder.module
    )
    assert plain.shape == other.shape == (1, 154, 16)
    alone = encode_prompts(("a red circle",), tokenizer=encoder.tokenizer, text_encoder=encoder.module)[0]
    empty = encode_prompts(("",), tokenizer=encoder.tokenizer, text_encoder=encoder.module)[0]
    torch.testing.assert_close(plain, torch.cat([alone, empty], 1))


def test_weight_one_changes_nothing_and_the_mean_stays(tiny):
    encoder = tiny.text_encoders[0]

    def encoded(text):
        return encode_prompts((text,), tokenizer=encoder.tokenizer, text_encoder=encoder.module)[0]

    torch.testing.assert_close(encoded("a (red:1.0) circle"), encoded("a red circle"), rtol=0, atol=0)
    strong, plain = encoded("a (red:1.4) circle"), encoded("a red circle")
    assert not torch.allclose(strong, plain)
    torch.testing.assert_close(strong.mean(), plain.mean())


def test_the_original_rule_by_hand():
    states = torch.tensor([[[1.0, 2.0], [3.0, 6.0]]])
    # Weighted: 1 2 6 12, mean 5.25; before 3.
    wanted = torch.tensor([[[1.0, 2.0], [6.0, 12.0]]]) * (3 / 5.25)
    torch.testing.assert_close(emphasise(states, [[1.0, 2.0]]), wanted)


def test_no_mean_to_keep_is_not_divided_by():
    states = torch.tensor([[[1.0, -1.0], [1.0, -1.0]]])
    torch.testing.assert_close(emphasise(states, [[1.0, 2.0]]), torch.tensor([[[1.0, -1.0], [2.0, -2.0]]]))


def test_the_cache_forgets_what_was_used_longest_ago():
    cache, made = PromptCache(2), []

    def ask(checkpoint, prompt):
        def encode():
            made.append((checkpoint, prompt))
            return torch.zeros(1), torch.zeros(1)

        return cache.get(checkpoint, prompt, "", encode)

    first = ask("a", "x")
    ask("b", "x")
    assert ask("a", "x") is first
    ask("a", "y")
    ask("a", "x")
    ask("b", "x")
    assert made == [("a", "x"), ("b", "x"), ("a", "y"), ("b", "x")]
