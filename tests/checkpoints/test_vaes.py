"""Separate VAEs: which files are some, which one a checkpoint works with, and loading them."""

import json

import pytest
import torch
from safetensors.torch import save_file

from webui.checkpoints import keymap
from webui.checkpoints.load import load_checkpoint
from webui.checkpoints.load_vae import load_vae
from webui.checkpoints.scan import CheckpointFolder
from webui.checkpoints.vaes import VaeFolder
from webui.core.errors import UnsupportedModel, VaeNotFound
from webui.core.geometry import Size
from webui.core.ports import CheckpointInfo

CPU = torch.device("cpu")
VAE_SHAPES = {"decoder.conv_in.weight": (8, 4, 3, 3)}


@pytest.fixture
def models(tmp_path, write_safetensors):
    """A checkpoint "model" with a VAE beside it, one without, and a VAE folder of all sorts."""
    checkpoints = tmp_path / "models" / "Stable-diffusion"
    write_safetensors(checkpoints / "model.safetensors", {"a": (1,)})
    write_safetensors(checkpoints / "model.vae.safetensors", VAE_SHAPES)
    write_safetensors(checkpoints / "plain.safetensors", {"a": (1,)})
    folder = tmp_path / "models" / "VAE"
    write_safetensors(folder / "soft.safetensors", VAE_SHAPES)
    write_safetensors(
        folder / "anime" / "sharp.safetensors", {"first_stage_model.decoder.conv_in.weight": (8, 4, 3, 3)}
    )
    write_safetensors(folder / "lora.safetensors", {"x.lora_down.weight": (1, 2)})
    (folder / "broken.safetensors").write_bytes(b"")
    (folder / "dangling.safetensors").symlink_to(folder / "gone")
    (folder / "notes.txt").write_text("soft is soft")
    return tmp_path / "models"


@pytest.fixture
def vaes(models):
    return VaeFolder(models, models / "Stable-diffusion")


def test_what_can_be_chosen(vaes, models):
    assert vaes.names() == ("soft.safetensors", "anime/sharp.safetensors", "model.vae.safetensors")
    assert vaes.path("anime/sharp.safetensors") == models / "VAE" / "anime" / "sharp.safetensors"
    with pytest.raises(VaeNotFound, match=r"'lora\.safetensors'.*Automatic, None, soft\.safetensors"):
        vaes.path("lora.safetensors")
    assert VaeFolder(models / "none", models / "none").names() == ()


def test_a_new_file_is_seen_and_a_known_one_not_read_again(vaes, models, write_safetensors, monkeypatch):
    vaes.names()
    write_safetensors(models / "VAE" / "late.safetensors", VAE_SHAPES)
    read = []
    monkeypatch.setattr("webui.checkpoints.vaes._holds_vae", lambda path: read.append(path.name) or True)
    assert "late.safetensors" in vaes.names()
    assert read == ["late.safetensors"]


@pytest.mark.parametrize(
    ("choice", "checkpoint", "preferred", "expected"),
    [
        ("Automatic", "model", "", "model.vae.safetensors"),
        ("Automatic", "model", "soft.safetensors", "model.vae.safetensors"),
        ("Automatic", "plain", "soft.safetensors", "soft.safetensors"),
        ("Automatic", "plain", "", None),
        ("None", "model", "soft.safetensors", None),
        ("anime/sharp.safetensors", "model", "soft.safetensors", "sharp.safetensors"),
    ],
)
def test_beside_the_checkpoint_then_the_setting_then_its_own(vaes, models, choice, checkpoint, preferred, expected):
    path = models / "Stable-diffusion" / f"{checkpoint}.safetensors"
    found = vaes.chosen(choice, checkpoint=path, preferred=preferred)
    assert (found and found.name) == expected


def test_a_missing_one_is_told_whoever_named_it(vaes, models):
    path = models / "Stable-diffusion" / "plain.safetensors"
    with pytest.raises(VaeNotFound, match=r"gone\.pt"):
        vaes.chosen("gone.pt", checkpoint=path, preferred="")
    with pytest.raises(VaeNotFound, match=r"gone\.pt"):
        vaes.chosen("Automatic", checkpoint=path, preferred="gone.pt")


def test_a_vae_beside_a_checkpoint_is_no_checkpoint(models):
    assert all(".vae" not in problem.path.name for problem in CheckpointFolder(models).problems())


# ---- loading --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint):
    path = tiny_checkpoint / "Stable-diffusion" / "tiny-random.safetensors"
    info = CheckpointInfo(name="tiny", family="sd1", native_size=Size(64, 64))
    return load_checkpoint(path, info, dtype=torch.float32, device=CPU)


@pytest.fixture
def state(checkpoint):
    """Weights of another VAE of the checkpoint's architecture, under diffusers' names."""
    torch.manual_seed(3)
    return {name: torch.randn_like(weight).half() for name, weight in checkpoint.vae.state_dict().items()}


def original(state, checkpoint, prefix=""):
    names = keymap.inverse(keymap.vae_table(keymap.VaeShape.from_config(checkpoint.vae.config)))
    renamed = {}
    for name, weight in state.items():
        attention = keymap.is_vae_attention_weight(name)
        renamed[prefix + keymap.translate(name, names)] = weight[..., None, None].contiguous() if attention else weight
    return renamed


@pytest.mark.parametrize("layout", ["diffusers", "original", "inside a checkpoint", "pickle"])
def test_every_layout_gives_the_same_weights(checkpoint, state, tmp_path, layout):
    path = tmp_path / ("a.pt" if layout == "pickle" else "a.safetensors")
    if layout == "diffusers":
        save_file(state, path)
    elif layout == "original":
        save_file({**original(state, checkpoint), "loss.logvar": torch.zeros(1)}, path)
    elif layout == "inside a checkpoint":
        save_file({**original(state, checkpoint, "first_stage_model."), "model.x": torch.zeros(1)}, path)
    else:
        torch.save({"state_dict": original(state, checkpoint)}, path)

    vae = load_vae(path, checkpoint, dtype=torch.float32, device=CPU)

    assert {name: weight.tolist() for name, weight in vae.state_dict().items()} == {
        name: weight.float().tolist() for name, weight in state.items()
    }
    assert vae is not checkpoint.vae
    assert not vae.training


def test_a_vae_of_another_family_is_refused_by_name(checkpoint, state, tmp_path):
    path = tmp_path / "flux.safetensors"
    state["decoder.conv_in.weight"] = torch.zeros(8, 16, 3, 3)
    save_file(state, path)
    with pytest.raises(UnsupportedModel, match=r"flux\.safetensors has 16 latent channels, and tiny needs 4"):
        load_vae(path, checkpoint, dtype=torch.float32, device=CPU)


def test_a_vae_that_declares_another_family_is_refused_too(checkpoint, state, tmp_path):
    path = tmp_path / "xl.safetensors"
    save_file(state, path, {"modelspec.architecture": "stable-diffusion-xl-v1-base/vae"})
    with pytest.raises(UnsupportedModel, match=r"xl\.safetensors is for stable-diffusion-xl.*family sd1"):
        load_vae(path, checkpoint, dtype=torch.float32, device=CPU)
    save_file(state, path, {"modelspec.architecture": "stable-diffusion-v2/vae"})
    load_vae(path, checkpoint, dtype=torch.float32, device=CPU)


def test_what_is_missing_or_no_vae_is_told(checkpoint, state, tmp_path):
    path = tmp_path / "half.safetensors"
    save_file({name: weight for name, weight in state.items() if not name.startswith("encoder.")}, path)
    with pytest.raises(UnsupportedModel, match=r"VAE half\.safetensors lacks"):
        load_vae(path, checkpoint, dtype=torch.float32, device=CPU)
    save_file({"json": torch.zeros(1)}, path, {"x": json.dumps({})})
    with pytest.raises(UnsupportedModel, match="holds no VAE"):
        load_vae(path, checkpoint, dtype=torch.float32, device=CPU)
