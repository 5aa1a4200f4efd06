import contextlib
import json
import struct
from random import Random

import pytest

from webui.checkpoints.header import read_header
from webui.core.errors import UnsupportedModel


def file_of(path, header, data=b""):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return path


def tensor(shape, start, end, dtype="F16"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def test_reads_names_shapes_and_metadata(tmp_path, write_safetensors):
    path = write_safetensors(tmp_path / "a.safetensors", {"x.weight": (2, 3), "y": ()}, {"title": "é"})

    header = read_header(path)

    assert header.shape("x.weight") == (2, 3)
    assert header.shape("y") == ()
    assert header.shape("z") is None
    assert header.metadata == {"title": "é"}
    assert header.has("x.")
    assert not header.has("weight")


def test_agrees_with_the_reference_implementation(tiny_checkpoint):
    from safetensors import safe_open

    path = tiny_checkpoint / "Stable-diffusion" / "tiny-random.safetensors"
    header = read_header(path)

    with safe_open(path, framework="pt") as reference:
        assert dict(header.metadata) == reference.metadata()
        names = reference.keys()
        assert set(header.tensors) == set(names)
        assert all(list(header.tensors[name].shape) == reference.get_slice(name).get_shape() for name in names)


BROKEN = {
    "nothing": (b"", "empty"),
    "three bytes": (b"abc", "3 bytes"),
    "an absurd length": (struct.pack("<Q", 2**63) + b"{}", "cut off"),
    "a length past the end": (struct.pack("<Q", 100) + b"{}", "cut off"),
    "no JSON": (struct.pack("<Q", 4) + b"spam", "does not begin"),
    "not UTF-8": (struct.pack("<Q", 4) + b"\xff\xfe\xff\xfe", "does not begin"),
    "deep nesting": (struct.pack("<Q", 200_000) + b"[" * 200_000, "does not begin"),
    "a list": (struct.pack("<Q", 2) + b"[]", "not a table"),
    "no tensors": (struct.pack("<Q", 2) + b"{}", "no weights"),
    "half a ZIP": (b"PK\x03\x04" + bytes(100), "cut off: its ZIP archive"),
    "a pickle that torch did not write": (b"\x80\x02" + bytes(100), "pickle that torch did not write"),
    "a web page": (b"<!DOCTYPE html><html></html>", "is a web page"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(100), "is a PNG picture"),
    "a tar archive": (bytes(257) + b"ustar" + bytes(100), "is a tar archive"),
    "a Git LFS placeholder": (b"version https://git-lfs.github.com/spec/v1", "not the model itself"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_file_is_told_in_a_sentence(what, tmp_path):
    content, words = BROKEN[what]
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)

    with pytest.raises(UnsupportedModel, match=words) as caught:
        read_header(path)

    assert str(caught.value).startswith("broken.safetensors ")


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"x": tensor([4], 0, 8)}, "cut off"),
        ({"x": tensor([4], 0, 6)}, "wrongly"),
        ({"x": tensor([-4], 0, 8)}, "wrongly"),
        ({"x": tensor([2**70], 0, 8)}, "wrongly"),
        ({"x": tensor([4], 8, 0)}, "wrongly"),
        ({"x": tensor([True], 0, 2)}, "wrongly"),
        ({"x": tensor([1] * 50, 0, 2)}, "wrongly"),
        ({"x": tensor([1], 0, 2, dtype="Q4")}, "format Q4"),
        ({"x": tensor([1], 0, 2, dtype=["F16"])}, "format"),
        ({"x": {"dtype": "F16"}}, "wrongly"),
        ({"x": 5}, "wrongly"),
        ({"x": tensor([1], 0, 2), "__metadata__": {"a": 1}}, "not text"),
    ],
)
def test_a_header_is_not_believed_before_it_is_checked(header, words, tmp_path):
    with pytest.raises(UnsupportedModel, match=words):
        read_header(file_of(tmp_path / "a.safetensors", header, bytes(4)))


def test_a_missing_file_and_a_link_to_itself_are_told(tmp_path):
    (tmp_path / "loop.safetensors").symlink_to(tmp_path / "loop.safetensors")

    for name, words in (("none", "No such file"), ("loop", "symbolic links")):
        with pytest.raises(UnsupportedModel, match=f"{name}.safetensors cannot be read: .*{words}"):
            read_header(tmp_path / f"{name}.safetensors")


def test_damage_anywhere_is_a_sentence(tmp_path, write_safetensors):
    """Any one byte changed, or the end missing, in a file that is all header."""
    whole = write_safetensors(tmp_path / "a.safetensors", {"x.weight": (2, 3), "y": (1,)}, {"a": "b"}).read_bytes()
    random = Random(0)
    path = tmp_path / "b.safetensors"
    for _ in range(300):
        damaged = bytearray(whole[: random.choice((len(whole), random.randrange(len(whole))))])
        for _ in range(random.randrange(4)):
            if damaged:
                damaged[random.randrange(len(damaged))] = random.randrange(256)
        path.write_bytes(damaged)
        with contextlib.suppress(UnsupportedModel):
            read_header(path)
