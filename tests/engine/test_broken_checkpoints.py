"""Every way in which a checkpoint can be broken: one sentence, and the one before is still loaded and paints."""

import dataclasses
import os
import shutil
import struct
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from webui.checkpoints.hash import ModelHashes
from webui.checkpoints.scan import CheckpointFolder
from webui.core.errors import CheckpointNotFound, UnsupportedModel
from webui.core.events import Finished, ImageReady
from webui.core.ports import Control
from webui.core.requests import Txt2Img
from webui.engine.manager import EngineManager
from webui.settings.schema import Settings

REQUEST = Txt2Img(prompt="a red circle", checkpoint="good", steps=1, width=64, height=64, seed=1)


@pytest.fixture(scope="module")
def models(tmp_path_factory, tiny_checkpoint):
    root = tmp_path_factory.mktemp("models")
    folder = root / "Stable-diffusion"
    folder.mkdir()
    shutil.copy(tiny_checkpoint / "Stable-diffusion" / "tiny-random.safetensors", folder / "good.safetensors")
    return root


@pytest.fixture(scope="module")
def engine(models):
    return EngineManager(CheckpointFolder(models), Settings, ModelHashes(None))


def run(engine, checkpoint="good"):
    return list(engine.generate(dataclasses.replace(REQUEST, checkpoint=checkpoint), control=Control()))


def picture(events):
    return next(event.image for event in events if isinstance(event, ImageReady)).tobytes()


@pytest.fixture(scope="module")
def painted(engine):
    """What the good checkpoint paints."""
    return picture(run(engine))


def changed(change):
    """The good file's weights and metadata, changed."""

    def make(good: Path, broken: Path):
        with safe_open(good, framework="pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata()
        change(weights)
        save_file(weights, broken, metadata=metadata)

    return make


def written(change):
    return lambda good, broken: broken.write_bytes(change(good.read_bytes()))


UNET, VAE, TEXT = "model.diffusion_model.out.2.bias", "first_stage_model.decoder.norm_out.bias", "cond_stage_model."


def poisoned(part):
    def change(weights):
        name = next(name for name in weights if name.startswith(part))
        weights[name] = weights[name].clone()
        weights[name].view(-1)[0] = float("nan")

    return change


class RunsCode:
    def __reduce__(self):
        return os.mkdir, ("sprung",)


BROKEN = {
    "truncated": (written(lambda raw: raw[: len(raw) // 2]), "is cut off"),
    "zero bytes": (written(lambda raw: b""), r"is empty \(0 bytes\)"),
    "a picture": (written(lambda raw: b"\x89PNG\r\n\x1a\n" + raw), "is a PNG picture"),
    "header larger than the file": (
        written(lambda raw: struct.pack("<Q", 2**40) + raw[8:]),
        "header has 1099511627776",
    ),
    "a missing weight": (changed(lambda weights: weights.pop(UNET)), "lacks 1 weights, 'conv_out.bias' first"),
    "a surplus weight": (
        changed(lambda weights: weights.update({"model.diffusion_model.spam": torch.ones(1)})),
        "spam.*which the architecture lacks",
    ),
    "a wrong shape": (changed(lambda weights: weights.update({UNET: torch.ones(5)})), r"in the size \(5,\) instead"),
    "NaN in the UNet": (changed(poisoned(UNET)), r"unet of .* not finite \(NaN\)"),
    "NaN in the VAE": (changed(poisoned(VAE)), r"vae of .* not finite \(NaN\)"),
    "NaN in the text encoder": (changed(poisoned(TEXT)), r"text encoder of .* not finite \(NaN\)"),
    "a pickle that would run code": (
        lambda good, broken: torch.save({"state_dict": {"x": torch.ones(1)}, "y": RunsCode()}, broken),
        "would run '.*mkdir'",
    ),
    "a link to itself": (lambda good, broken: broken.symlink_to(broken), "symbolic links"),
}


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("what", BROKEN)
def test_one_sentence_and_the_one_before_still_paints(what, suffix, models, engine, painted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make, words = BROKEN[what]
    folder = models / "Stable-diffusion"
    broken = folder / f"broken{suffix}"
    make(folder / "good.safetensors", broken)
    try:
        with pytest.raises(UnsupportedModel, match=words) as caught:
            run(engine, "broken")
    finally:
        broken.unlink()

    assert "\n" not in str(caught.value)
    assert "broken" in str(caught.value)
    assert engine.status().checkpoint == "good"
    assert picture(run(engine)) == painted
    assert not (tmp_path / "sprung").exists()


def test_a_file_replaced_while_in_use(models, engine, painted):
    """By a broken one: told when it is asked for again. By the old one: paints as before."""
    path = models / "Stable-diffusion" / "second.safetensors"
    whole = (models / "Stable-diffusion" / "good.safetensors").read_bytes()
    path.write_bytes(whole)
    events = engine.generate(dataclasses.replace(REQUEST, checkpoint="second"), control=Control())
    next(events)
    path.write_bytes(whole[: len(whole) // 2])
    rest = list(events)
    assert isinstance(rest[-1], Finished)
    assert picture(rest) == painted

    with pytest.raises(UnsupportedModel, match="cut off"):
        run(engine, "second")
    path.unlink()
    with pytest.raises(CheckpointNotFound):
        run(engine, "second")
    assert picture(run(engine)) == painted
