"""Weights as tensors from every container, against what was written."""

import json
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from webui import cli
from webui.checkpoints import weights as door
from webui.checkpoints.conversion import convert
from webui.checkpoints.header import read_header
from webui.checkpoints.load import load_checkpoint
from webui.checkpoints.weights import open_weights, refuse_nan
from webui.core.errors import UnsupportedModel, UserError
from webui.core.geometry import Size
from webui.core.ports import CheckpointInfo


@pytest.fixture(scope="module")
def state():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        base = torch.randn(8)
        return {
            "half": torch.randn(2, 3).half(),
            "brain": torch.randn(3).bfloat16(),
            "eight": torch.randn(4).to(torch.float8_e5m2),
            "turned": torch.randn(3, 2).T,
            "first": base[:4],
            "all": base,
            "parameter": torch.nn.Parameter(torch.ones(2)),
        }


def same(weights, state):
    assert set(weights.header.tensors) == set(state)
    for name, wanted in state.items():
        got = weights.tensor(name)
        assert got.dtype == wanted.dtype, name
        assert torch.equal(got.float(), wanted.float()), name


class Callback:
    """What trainers leave in their files, under the name of a class that is not installed here."""


Callback.__module__ = "pytorch_lightning.callbacks.model_checkpoint"
Callback.__name__ = Callback.__qualname__ = "ModelCheckpoint"


@pytest.fixture
def trained(state, tmp_path, monkeypatch):
    """A checkpoint as a trainer saves it, with its own class as a key and an object of it as a value."""
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks", Callback.__module__):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setattr(sys.modules[Callback.__module__], "ModelCheckpoint", Callback, raising=False)
    torch.save({"state_dict": state, "callbacks": {Callback: Callback()}, "epoch": 7}, tmp_path / "a.ckpt")
    return tmp_path / "a.ckpt"


def test_a_training_checkpoint_is_converted_once_and_kept(trained, state, tmp_path, monkeypatch):
    path, kept = trained, tmp_path / "data" / "kept"

    with open_weights(path, conversions=kept) as weights:
        same(weights, state)
        assert weights.header.metadata["epoch"] == "7"
    assert len(list(kept.iterdir())) == 1

    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("converted again"))
    with open_weights(path, conversions=kept) as weights:
        same(weights, state)


def test_a_pickled_checkpoint_gives_the_same_modules(tiny_checkpoint, tmp_path):
    source = tiny_checkpoint / "Stable-diffusion" / "tiny-random.safetensors"
    pickled = tmp_path / "tiny.ckpt"
    torch.save({"state_dict": load_file(source), **read_header(source).metadata}, pickled)
    info = CheckpointInfo(name="tiny", family="sd1", native_size=Size(64, 64))

    wanted, got = (
        load_checkpoint(path, info, dtype=torch.float32, device=torch.device("cpu")) for path in (source, pickled)
    )

    assert got.prediction_type == wanted.prediction_type
    for module in ("unet", "vae"):
        weights = getattr(got, module).state_dict()
        for name, weight in getattr(wanted, module).state_dict().items():
            assert torch.equal(weights[name], weight), name


def test_convert_writes_beside_and_overwrites_nothing(tmp_path, capsys):
    source = tmp_path / "old.pt"
    torch.save({"x": torch.ones(3)}, source, _use_new_zipfile_serialization=False)

    assert cli.main(["convert", str(source)]) == 0

    target = tmp_path / "old.safetensors"
    assert str(target) in capsys.readouterr().out
    assert torch.equal(load_file(target)["x"], torch.ones(3))
    with pytest.raises(UserError, match="there already"):
        convert(source)
    with pytest.raises(UserError, match="no pickle"):
        convert(target, tmp_path / "new.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old.pt", "old.safetensors"]


def test_reading_stops_at_its_limits(tmp_path):
    """The process that reads gives up where a file would need far more than its size."""
    program = (
        "import torch; from webui.checkpoints.conversion_process import _limit; _limit(1000);"
        "torch.ones(2**34, dtype=torch.uint8)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)

    assert done.returncode != 0
    assert "allocate memory" in done.stderr


def test_shards(state, tmp_path):
    names = sorted(state)
    for file, part in (("1.safetensors", names[:3]), ("2.safetensors", names[3:])):
        save_file({name: state[name].detach().clone().contiguous() for name in part}, tmp_path / file)
    index = tmp_path / "a.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: f"{1 + (name in names[3:])}.safetensors" for name in names}}))

    with open_weights(index) as weights:
        same(weights, state)


@pytest.fixture
def large(tmp_path):
    """A file of 24 tensors of 256 kB each."""
    path = tmp_path / "large.safetensors"
    save_file({f"layer.{index}": torch.full((256, 256), float(index)) for index in range(24)}, path)
    return path


def resident_bytes(path):
    """What of this process's resident memory are pages of the file at `path`."""
    found, counts = 0, False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8", errors="replace").splitlines():
        if "-" in line.split(" ", 1)[0]:
            counts = line.endswith(str(path))
        elif counts and line.startswith("Rss:"):
            found += int(line.split()[1]) * 1024
    return found


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's account of a process's memory")
def test_a_model_is_not_in_memory_twice_while_it_is_copied(large, monkeypatch):
    monkeypatch.setattr(door, "WINDOW_BYTES", 1 << 20)
    most = 0
    with open_weights(large) as opened:
        for name, tensor in opened.tensors():
            assert tensor.mean().item() == float(name[6:])
            del tensor
            most = max(most, resident_bytes(large))
    assert 0 < most < 3 << 20, "of six megabytes"
    assert resident_bytes(large) == 0


def test_a_file_that_is_replaced_while_it_is_read_is_told(large, tmp_path, monkeypatch):
    monkeypatch.setattr(door, "WINDOW_BYTES", 1 << 20)
    other = tmp_path / "other"
    save_file({f"layer.{index}": torch.zeros(256, 256) for index in range(24)}, other)
    with open_weights(large) as opened:
        for index in range(5):
            opened.tensor(f"layer.{index}")
        other.replace(large)
        with pytest.raises(UnsupportedModel, match="replaced while it was read"):
            opened.tensor("layer.5")


@pytest.mark.parametrize("text", ["{}", "[]", "nonsense", '{"weight_map": {}}', '{"weight_map": {"a": "../b"}}'])
def test_an_index_of_nothing_is_told(text, tmp_path):
    index = tmp_path / "a.safetensors.index.json"
    index.write_text(text)

    with pytest.raises(UnsupportedModel, match=r"a\.safetensors\.index\.json"):
        read_header(index)


def test_averaged_weights_under_their_plain_names(tmp_path):
    save_file({"model_ema.diffusion_modelout2weight": torch.ones(2)}, tmp_path / "ema.safetensors")

    with open_weights(tmp_path / "ema.safetensors") as weights:
        assert [name for name, _ in weights.tensors()] == ["model.diffusion_model.out.2.weight"]
        assert torch.equal(weights.tensor("model.diffusion_model.out.2.weight"), torch.ones(2))


def test_a_name_that_is_not_there_is_told(tmp_path):
    save_file({"x": torch.ones(2)}, tmp_path / "a.safetensors")

    with open_weights(tmp_path / "a.safetensors") as weights, pytest.raises(UnsupportedModel, match=r"'y' of a\.safe"):
        weights.tensor("y")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_numbers_that_are_not_finite_are_found(dtype):
    good = torch.full((64, 64), 60000.0).to(dtype)  # whose sum is no half-precision number
    refuse_nan(good, "w", "unet")
    refuse_nan(torch.tensor([1, 2]), "w", "unet")
    for bad in (float("nan"), float("inf"), float("-inf")):
        weight = good.clone()
        weight[3, 5] = bad
        with pytest.raises(UnsupportedModel, match=r"unet has numbers that are not finite .*'w'"):
            refuse_nan(weight, "w", "unet")


class TestGguf:
    """Against the `gguf` package, which writes the files."""

    @pytest.fixture
    def path(self, tmp_path):
        import gguf
        import numpy as np

        random = np.random.default_rng(0)
        writer = gguf.GGUFWriter(tmp_path / "a.gguf", "sd1")
        writer.add_array("comfy.gguf.orig_shape.conv", [4, 4, 2, 8])
        writer.add_array("words", ["a", "b"])
        self.wanted = {}
        for name, kind in (
            ("q8", "Q8_0"),
            ("q4", "Q4_0"),
            ("q5", "Q5_1"),
            ("half", "F16"),
            ("brain", "BF16"),
            ("f", "F32"),
        ):
            numbers = random.standard_normal((4, 64), dtype=np.float32)
            packed = gguf.quants.quantize(numbers, gguf.GGMLQuantizationType[kind])
            writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType[kind])
            self.wanted[name] = torch.from_numpy(gguf.quants.dequantize(packed, gguf.GGMLQuantizationType[kind]))
        writer.add_tensor("conv", random.standard_normal((32, 8), dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return tmp_path / "a.gguf"

    def test_numbers_and_shapes(self, path):
        with open_weights(path) as weights:
            assert weights.header.metadata["general.architecture"] == "sd1"
            assert weights.header.tensors["q4"].dtype == "Q4_0"
            assert weights.tensor("conv").shape == weights.header.shape("conv") == (4, 4, 2, 8)
            for name, wanted in self.wanted.items():
                assert torch.equal(weights.tensor(name).float(), wanted), name

    def test_damage_anywhere_is_a_sentence(self, path, tmp_path):
        import contextlib
        from random import Random

        whole, random = path.read_bytes(), Random(4)
        for _ in range(250):
            damaged = bytearray(whole[: random.choice((len(whole), random.randrange(len(whole))))])
            for _ in range(random.randrange(4)):
                damaged[random.randrange(min(len(damaged), 700)) if damaged else 0 : 1] = bytes([random.randrange(256)])
            (tmp_path / "b.gguf").write_bytes(damaged)
            with contextlib.suppress(UnsupportedModel):
                read_header(tmp_path / "b.gguf")
