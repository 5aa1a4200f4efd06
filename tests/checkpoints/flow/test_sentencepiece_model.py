"""SentencePiece's files, whole and damaged."""

import pytest

from webui.checkpoints.sentencepiece_model import read_pieces
from webui.core.errors import UnsupportedModel


def test_pieces_come_with_their_scores_in_order(piece_file, tmp_path):
    found = read_pieces(piece_file(tmp_path / "spiece.model"))

    assert [piece for piece, _ in found.pieces[:4]] == ["<pad>", "</s>", "<unk>", "▁a"]
    assert {score for _, score in found.pieces} == {-1.0}
    assert found.characters == b""


def test_the_table_of_characters_is_found(tmp_path):
    path = tmp_path / "spiece.model"
    path.write_bytes(b"\x1a\x06" + b"\x0a\x01n" + b"\x12\x01t")

    assert read_pieces(path).characters == b"t"


@pytest.mark.parametrize(
    "content", [b"\x0a\x05ab", b"\x0b", b"\xff" * 12, b"\x0a\x02\x18\x01", b"\x0a\x03\x0a\x01\xff"]
)
def test_what_is_damaged_says_so(content, tmp_path):
    path = tmp_path / "spiece.model"
    path.write_bytes(content)

    with pytest.raises(UnsupportedModel, match=r"spiece\.model is no SentencePiece model, or is damaged"):
        read_pieces(path)
