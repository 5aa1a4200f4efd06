"""What a pickle says of its weights, without running any of it: against torch's own files, and against hostile ones."""

import argparse
import collections
import contextlib
import io
import os
import struct
import zipfile
from random import Random

import pytest
import torch

from webui.checkpoints.containers.pickle_machine import Damaged, WouldRunCode, read_pickle
from webui.checkpoints.header import read_header
from webui.core.errors import UnsupportedModel


def state():
    base = torch.randn(10)
    weights = collections.OrderedDict(
        half=torch.randn(3, 4).half(),
        brain=torch.randn(3).bfloat16(),
        turned=torch.randn(4, 5).T,
        whole=torch.arange(5),
        scalar=torch.tensor(3.0),
        empty=torch.zeros(0),
        parameter=torch.nn.Parameter(torch.ones(2)),
        first=base[:5],
        second=base[5:],
    )
    weights._metadata = {"": {"version": 1}}  # as every module's state_dict has
    return weights


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])
def test_agrees_with_what_was_saved(zipped, tmp_path):
    weights = state()
    if zipped:  # the old format has no place for it
        weights["eight"] = torch.randn(4).to(torch.float8_e4m3fn)
    saved = {"state_dict": weights, "epoch": 3, "hyper_parameters": argparse.Namespace(rate=0.1), "set": {1, 2}}
    torch.save(saved, tmp_path / "a.ckpt", _use_new_zipfile_serialization=zipped)

    header = read_header(tmp_path / "a.ckpt")

    assert header.container == "pickle"
    assert header.metadata == {"epoch": "3"}
    assert {name: tensor.shape for name, tensor in header.tensors.items()} == {
        name: tuple(weight.shape) for name, weight in weights.items()
    }
    dtypes = {"half": "F16", "brain": "BF16", "turned": "F32", "whole": "I64"}
    if zipped:
        dtypes["eight"] = "F8_E4M3"
    assert {name: header.tensors[name].dtype for name in dtypes} == dtypes


@pytest.mark.parametrize(
    ("saved", "names"),
    [
        ({"params_ema": {"a": torch.ones(1)}, "params": {"b": torch.ones(1)}}, ["a"]),
        ({"string_to_param": {"*": torch.ones(2, 8)}, "name": "cat"}, ["string_to_param.*"]),
        ({768: ({"linear": torch.ones(1)}, {"linear": torch.ones(1)})}, ["768.0.linear", "768.1.linear"]),
        ({"<cat>": torch.ones(8)}, ["<cat>"]),
        ([torch.ones(1)], ["0"]),
    ],
)
def test_the_weights_of_any_tree_are_found(saved, names, tmp_path):
    torch.save(saved, tmp_path / "a.pt")

    assert list(read_header(tmp_path / "a.pt").tensors) == names


class Runs:
    """Anything that `pickle` would call; here it would leave a file behind."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("function", [os.system, eval, exec, getattr, open, __import__, torch.load])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])
def test_code_is_named_and_never_run(function, zipped, tmp_path):
    trap = tmp_path / "sprung"
    saved = {"state_dict": state(), "extra": Runs(function, f"open({str(trap)!r}, 'w')")}
    torch.save(saved, tmp_path / "a.ckpt", _use_new_zipfile_serialization=zipped)

    with pytest.raises(UnsupportedModel, match=rf"a\.ckpt is a pickle that would run '.*{function.__name__}'"):
        read_header(tmp_path / "a.ckpt")

    assert not trap.exists()


BOMBS = {
    "a place in the memo beyond all memory": b"\x80\x02]r\xff\xff\xff\x7f.",
    "a text longer than the file": b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"a.",
    "nothing on the stack": b"\x80\x02R.",
    "a mark that is not there": b"\x80\x02u.",
    "tuples of nothing": b"\x80\x02\x87.",
    "no end": b"\x80\x02]",
    "an instruction for instances": b"\x80\x02(i__main__\nA\n.",
    "a call of no function": b"\x80\x02K\x01)R.",
    "a tensor of no storage": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(K\x00K\x00))t R.".replace(b" ", b""),
    "nothing": b"",
}


@pytest.mark.parametrize("what", BOMBS)
def test_nonsense_is_damage(what):
    stream = io.BytesIO(BOMBS[what])
    if what.startswith("a place"):  # a table of two thousand million places would be; ours has one entry
        assert read_pickle(stream)[0] == []
        return
    with pytest.raises(Damaged):
        read_pickle(stream)


def test_a_tree_that_unfolds_without_end_is_refused(tmp_path):
    tree = [torch.ones(1)]
    for _ in range(10):
        tree = [tree] * 100
    torch.save(tree, tmp_path / "a.pt")

    with pytest.raises(UnsupportedModel, match="more parts than any model"):
        read_header(tmp_path / "a.pt")


def test_keys_that_unfold_without_end_are_passed_over():
    """Written by hand, for the pickler would hash the key as any dict does, in 2 ** 60 steps."""
    key = b")q\x000" + b"h\x00h\x00\x86q\x000" * 60 + b"h\x00"

    assert read_pickle(io.BytesIO(b"\x80\x02}" + key + b"K\x01s."))[0] == {}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # pickletools, on texts with odd escapes
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])
def test_damage_anywhere_is_a_sentence(zipped, tmp_path):
    small = {"state_dict": collections.OrderedDict(a=torch.ones(2, 2), b=torch.ones(1).half())}
    small["x"] = argparse.Namespace(y=1)
    torch.save(small, tmp_path / "a", _use_new_zipfile_serialization=zipped)
    whole = (tmp_path / "a").read_bytes()
    start = whole.find(b"\x80\x02")
    random = Random(1)
    path = tmp_path / "b.ckpt"
    for _ in range(250):
        end = random.choice((len(whole), len(whole), random.randrange(len(whole))))
        damaged = bytearray(whole[:end])
        for _ in range(random.randrange(1, 4)):
            place = random.randrange(start, start + 400) if random.random() < 0.7 else random.randrange(len(whole))
            if place < len(damaged):
                damaged[place] = random.randrange(256)
        path.write_bytes(damaged)
        with contextlib.suppress(UnsupportedModel):
            read_header(path)


def test_random_instructions_raise_only_what_is_said():
    """Not one flip but nothing but noise, weighted towards instructions that the machine knows."""
    random = Random(2)
    known = b"}](tu.a)0\x85\x86\x87Rbcsq\x00h\x00K\x01NQX\x01\x00\x00\x00a\x88\x93\x94\x8c\x01a\x8f\x90\x91\x81"
    for _ in range(3000):
        noise = bytes(random.choice(known) for _ in range(random.randrange(1, 40)))
        with contextlib.suppress(Damaged, WouldRunCode):
            read_pickle(io.BytesIO(b"\x80\x02" + noise + b"."))


def rewritten(path, change):
    """The archive at `path` with `change` applied to the dict of its entries."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
        folder = archive.namelist()[0].partition("/")[0]
    change(entries, folder)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda entries, folder: entries.pop(f"{folder}/data/0"), "wrongly"),
        (lambda entries, folder: entries.update({f"{folder}/data/0": b"ab"}), "cut off"),
        (lambda entries, folder: entries.pop(f"{folder}/data.pkl"), "not one of torch"),
        (lambda entries, folder: entries.update({f"{folder}/constants.pkl": b""}), "TorchScript"),
        (lambda entries, folder: entries.update({f"{folder}/byteorder": b"big"}), "byte order"),
    ],
)
def test_an_archive_that_contradicts_itself(change, words, tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"x": torch.ones(4)}, path)
    rewritten(path, change)

    with pytest.raises(UnsupportedModel, match=words):
        read_header(path)
