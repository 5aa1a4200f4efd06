"""Embeddings in every layout that artists have, found as words in prompts."""

import base64
import json

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save_file

from webui.checkpoints.embeddings import Embedding, EmbeddingFolder
from webui.core.errors import UnsupportedModel

VECTORS = torch.arange(6.0).reshape(2, 3)


def picture(path, text=None):
    information = PngInfo()
    if text is not None:
        information.add_text("sd-ti-embedding", text)
    Image.new("RGB", (4, 4)).save(path, pnginfo=information)


@pytest.fixture
def folder(tmp_path):
    save_file({"emb_params": VECTORS}, tmp_path / "plain.safetensors")
    save_file({"clip_l": VECTORS, "clip_g": torch.ones(2, 5)}, tmp_path / "large.safetensors")
    save_file({"<word>": VECTORS[0]}, tmp_path / "one.safetensors")
    save_file({"a": torch.ones(2, 3, 4)}, tmp_path / "wrong.safetensors")
    values = {"string_to_token": {"*": 265}, "string_to_param": {"*": {"TORCHTENSOR": VECTORS.tolist()}}}
    picture(tmp_path / "drawn.png", base64.b64encode(json.dumps(values).encode()).decode())
    picture(tmp_path / "torn.png", "e30=")
    picture(tmp_path / "plain.png")
    picture(tmp_path / "holiday.png")
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "sub").mkdir()
    save_file({"emb_params": VECTORS + 1}, tmp_path / "sub" / "bad-hands-5.safetensors")
    return EmbeddingFolder((tmp_path, tmp_path / "missing"))


def names(pieces):
    return [f"<{piece.name}>" if isinstance(piece, Embedding) else piece for piece in pieces]


def test_pictures_without_one_are_not_embeddings(folder):
    assert folder.current().names() == [
        "bad-hands-5", "drawn", "empty", "large", "one", "plain", "torn", "wrong",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["plain", "drawn"])
def test_one_without_an_encoder_serves_whoever_has_its_width(folder, name):
    embedding = folder.current().find(name)
    for encoder in ("clip_l", "clip_h"):
        assert torch.equal(embedding.vectors_for(encoder, 3), VECTORS)
    assert embedding.vectors_for("clip_l", 4) is None


def test_one_vector_is_a_row(folder):
    assert torch.equal(folder.current().find("one").vectors_for("clip_l", 3), VECTORS[:1])


def test_one_for_two_encoders_keeps_them_apart(folder):
    embedding = folder.current().find("LARGE")
    assert torch.equal(embedding.vectors_for("clip_l", 3), VECTORS)
    assert torch.equal(embedding.vectors_for("clip_g", 5), torch.ones(2, 5))
    assert embedding.vectors_for("clip_h", 3) is None


def test_a_pickle_of_a1111_is_read_by_the_other_process(tmp_path):
    values = {"string_to_token": {"*": 265}, "string_to_param": {"*": VECTORS.half()}, "name": "old", "step": 100}
    torch.save(values, tmp_path / "old.pt")
    found = EmbeddingFolder((tmp_path,), conversions=tmp_path / "kept").current().find("old")
    assert torch.equal(found.vectors_for("clip_l", 3), VECTORS)


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("", []),
        ("a cat", ["a cat"]),
        ("plain", ["<plain>"]),
        ("a Plain, one.", ["a ", "<plain>", ", ", "<one>", "."]),
        ("plainly explain_plain", ["plainly explain_plain"]),
        ("bad-hands-5", ["<bad-hands-5>"]),
        ("bad-hands-55 bad-hands", ["bad-hands-55 bad-hands"]),
    ],
)
def test_prompts_are_split_at_whole_words(folder, text, pieces):
    assert names(folder.current().split(text)) == pieces


def test_the_longest_name_wins(tmp_path):
    for name in ("ink", "ink-v2"):
        save_file({"emb_params": VECTORS}, tmp_path / f"{name}.safetensors")
    embeddings = EmbeddingFolder((tmp_path,)).current()
    assert names(embeddings.split("ink-v2 ink-v ink")) == ["<ink-v2>", " ", "<ink>", "-v ", "<ink>"]


@pytest.mark.parametrize(
    ("name", "words"), [("wrong", "holds no embedding"), ("torn", "cannot be read"), ("empty", "is empty")]
)
def test_damaged_ones_are_told_by_name(folder, name, words):
    with pytest.raises(UnsupportedModel, match=f"{name}.*{words}"):
        folder.current().find(name)


def test_a_replaced_file_is_read_again(folder, tmp_path):
    assert folder.current().find("plain").vectors_for("", 3) is not None
    save_file({"emb_params": torch.ones(7, 3)}, tmp_path / "plain.safetensors")
    assert folder.current().find("plain").vectors_for("", 3).shape == (7, 3)
