import hashlib

from webui.checkpoints import hash as hashing
from webui.checkpoints.tokenizer import ClipTokenizer


def test_the_hash_is_the_beginning_of_the_files_sha256(tmp_path):
    path = tmp_path / "a.safetensors"
    content = bytes(range(256)) * 9000
    path.write_bytes(content)

    assert hashing.short_hash(path) == hashlib.sha256(content).hexdigest()[:10]


def test_a_changed_file_has_another_hash(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"one")
    first = hashing.short_hash(path)
    path.write_bytes(b"three")

    assert hashing.short_hash(path) != first


def test_a_folders_hash_is_that_of_its_weights(tmp_path):
    weights = tmp_path / "unet" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"one")
    first = hashing.short_hash(tmp_path)
    (tmp_path / "notes.txt").write_text("no weights")

    assert hashing.short_hash(tmp_path) == first
    weights.write_bytes(b"three")
    assert hashing.short_hash(tmp_path) != first


def test_ids_are_those_of_clip():
    """From the vocabulary of openai/clip-vit-large-patch14: "a photo of a cat" is 320 1125 539 320 2368."""
    tokenizer = ClipTokenizer()

    assert tokenizer.encode("a photo of a cat") == [320, 1125, 539, 320, 2368]
    assert tokenizer.encode("A  PHOTO of a\ncat") == [320, 1125, 539, 320, 2368]
    assert tokenizer.encode("") == []
    assert (tokenizer.start_token, tokenizer.end_token, tokenizer.pad_token) == (49406, 49407, 49407)


def test_long_and_strange_text_has_ids_too():
    tokenizer = ClipTokenizer()

    assert len(tokenizer.encode("cat " * 500)) == 500
    assert tokenizer.encode("日本 🎨 e\u0301")
