"""CLIP's tokens without torch, as open_clip and transformers give them."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from webui.checkpoints.tokenizer import ClipTokenizer
from webui.hardware import torchvision_operators


@pytest.fixture(scope="module")
def open_clip():
    torchvision_operators.declare()
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


def test_ids_are_those_of_open_clip(open_clip):
    random_source = random.Random(3)
    words = [
        "cat", "masterpiece,", "(best", "quality:1.2)", "日本", "🎨", "é", "it's", "12345", "&amp;", "x" * 30, "aaaa",
        "AbC", "...!!", "\n", "“q”", "‰", "<lora:x:1>", "hello_world", "zzzzzzabab", "e\u0301", "ﬁ", "''re",
    ]  # fmt: skip
    tokenizer = ClipTokenizer()
    for _ in range(600):
        text = " ".join(random_source.choices(words, k=random_source.randint(0, 8)))
        assert tokenizer.encode(text) == open_clip.encode(text), text
    for _ in range(600):
        letters = "".join(random_source.choices("aeinrst'1", k=random_source.randint(1, 30)))
        assert tokenizer.encode(letters) == open_clip.encode(letters), letters


def test_special_tokens_can_be_spelt_out():
    assert ClipTokenizer().encode("a <|endoftext|> b") == [320, 49407, 321]


def test_a_word_of_any_length_is_merged():
    # One word that halves at each merge; looking through all pairs for each of 30,000 merges would take minutes.
    tokens = ClipTokenizer().encode("a" * 30_000)
    assert 3_000 < len(tokens) < 10_000


def test_torch_is_not_loaded():
    code = (
        "import sys; from webui.checkpoints.tokenizer import ClipTokenizer;"
        "print(ClipTokenizer().encode('a cat'), 'torch' in sys.modules)"
    )
    root = Path(__file__).resolve().parents[2]
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[320, 2368] False"
