import hashlib
import os
import threading
from unittest.mock import Mock

import pytest
from sqlalchemy.exc import OperationalError

from webui.checkpoints import hash as hashing
from webui.checkpoints.hash import ModelHashes
from webui.checkpoints.tokenizer import ClipTokenizer
from webui.database.hashes import HashTable
from webui.database.opening import open_database


@pytest.fixture
def table():
    database = open_database("sqlite://")
    yield HashTable(database)
    database.dispose()


def settle():
    """Waits for the hashing threads, which keep what they found after they have told it."""
    for thread in threading.enumerate():
        if thread.name.startswith("atelier-hash"):
            thread.join(20)


def test_the_hash_is_the_beginning_of_the_files_sha256(tmp_path):
    path = tmp_path / "a.safetensors"
    content = bytes(range(256)) * 9000
    path.write_bytes(content)

    assert ModelHashes().short_hash(path)() == hashlib.sha256(content).hexdigest()[:10]


def test_a_changed_file_has_another_hash(tmp_path, table):
    path = tmp_path / "a.safetensors"
    hashes = ModelHashes(table)
    path.write_bytes(b"one")
    first = hashes.short_hash(path)()
    settle()
    path.write_bytes(b"three")

    assert hashes.short_hash(path)() == hashlib.sha256(b"three").hexdigest()[:10] != first
    settle()
    assert ModelHashes(table).short_hash(path)() == hashlib.sha256(b"three").hexdigest()[:10]


def test_a_folders_hash_is_that_of_its_weights(tmp_path):
    weights = tmp_path / "unet" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"one")
    hashes = ModelHashes()
    first = hashes.short_hash(tmp_path)()
    (tmp_path / "notes.txt").write_text("no weights")

    assert len(first) == 10
    assert hashes.short_hash(tmp_path)() == first
    weights.write_bytes(b"three")
    assert hashes.short_hash(tmp_path)() != first


def test_a_restart_reads_no_file_again(tmp_path, table, monkeypatch):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"weights")
    first = ModelHashes(table).short_hash(path)()
    settle()
    monkeypatch.setattr(hashing, "_hash", Mock(side_effect=AssertionError("hashed again")))

    assert ModelHashes(table).short_hash(path)() == first


def test_a_file_is_hashed_once_for_all_who_ask_and_nobody_waits_before_they_call(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"weights")
    go = threading.Event()
    slow = Mock(side_effect=lambda *_, **__: go.wait(20) and "f" * 64)
    monkeypatch.setattr(hashing, "_hash", slow)
    hashes = ModelHashes()

    pending = [hashes.short_hash(path) for _ in range(3)]
    go.set()

    assert [one() for one in pending] == ["f" * 10] * 3
    slow.assert_called_once()


def test_autov3_leaves_the_header_out(tmp_path):
    """As the AddNet extension hashed LoRAs, and A1111 after it: eight bytes, the header, then what is hashed."""
    weights = bytes(range(256)) * 20
    hashes = ModelHashes()
    for name, header in (("a", b"{}"), ("b", b'{"__metadata__": {"ss_note": "another text"}}')):
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(len(header).to_bytes(8, "little") + header + weights)
        assert hashes.autov3(path)() == hashlib.sha256(weights).hexdigest()[:12]
    pickle = tmp_path / "c.pt"
    pickle.write_bytes(weights)
    assert hashes.autov3(pickle)() == hashlib.sha256(weights).hexdigest()[:12]


def test_both_kinds_of_one_file_are_kept_apart(tmp_path, table):
    path = tmp_path / "a.safetensors"
    path.write_bytes((2).to_bytes(8, "little") + b"{}weights")
    hashes = ModelHashes(table)
    both = [hashes.short_hash(path)(), hashes.autov3(path)()]
    settle()

    again = ModelHashes(table)
    assert [again.short_hash(path)(), again.autov3(path)()] == both


@pytest.mark.parametrize("content", [b"abc", b"\xff" * 30], ids=["short", "no header"])
def test_what_cannot_be_hashed_has_no_digits(tmp_path, content):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    hashes = ModelHashes()

    assert hashes.autov3(path)() == ""
    assert hashes.short_hash(tmp_path / "gone.safetensors")() == ""
    assert hashes.short_hash(tmp_path / "empty")() == ""


def test_a_file_replaced_while_it_is_hashed_has_no_hash_of_either(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"one")

    with pytest.raises(OSError, match="changed while it was hashed"):
        hashing._hash(path, hashing.HashKind.SHA256, size=3, modified_ns=path.stat().st_mtime_ns - 1)


def test_a_database_that_does_not_answer_costs_only_the_memory_of_it(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"weights")
    locked = OperationalError("", None, Exception("database is locked"))
    broken = Mock(spec=HashTable, get=Mock(side_effect=locked), put=Mock(side_effect=locked))

    assert ModelHashes(broken).short_hash(path)() == hashlib.sha256(b"weights").hexdigest()[:10]
    settle()
    broken.put.assert_called_once()


def test_names_that_are_not_utf_8_are_kept_too(tmp_path, table):
    path = tmp_path / os.fsdecode(b"caf\xe9.safetensors")
    table.put(path, "sha256", "f" * 64, size=1, modified_ns=2)

    assert table.get(path, "sha256", size=1, modified_ns=2) == "f" * 64
    assert table.get(path, "sha256", size=1, modified_ns=3) is None


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
