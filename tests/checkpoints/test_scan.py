import json
import logging
import shutil
import subprocess
import sys

import pytest

from webui.checkpoints.scan import CheckpointFolder
from webui.core.errors import CheckpointNotFound, UnsupportedModel, UpscalerNotFound, UserError


@pytest.fixture
def models(tmp_path):
    (tmp_path / "models" / "Stable-diffusion").mkdir(parents=True)
    return tmp_path / "models"


@pytest.fixture
def put(models, write_safetensors, sd1_shapes):
    """Puts a recognisable checkpoint into the folder."""

    def put(name):
        return write_safetensors(models / "Stable-diffusion" / name, sd1_shapes)

    return put


def names(folder):
    return [info.name for info in folder.checkpoints()]


def test_lists_files_of_all_folders_by_name(models, put):
    for name in ("b.safetensors", "people/Anna.SafeTensors", "c.v1.5.safetensors"):
        put(name)

    folder = CheckpointFolder(models)

    assert names(folder) == ["b", "c.v1.5", "people/Anna"]
    assert folder.problems() == []
    assert folder.path("people/Anna").name == "Anna.SafeTensors"
    assert folder.checkpoint("b").family == "sd1"


def test_content_decides_and_not_the_suffix(models, put):
    put("really.ckpt")
    (models / "Stable-diffusion" / "pickle.safetensors").write_bytes(b"PK\x03\x04" + bytes(50))
    (models / "Stable-diffusion" / "old.ckpt").write_bytes(b"\x80\x02" + bytes(50))
    (models / "Stable-diffusion" / "notes.txt").write_text("no model")

    folder = CheckpointFolder(models)

    assert names(folder) == ["really"]
    assert {problem.path.name for problem in folder.problems()} == {"pickle.safetensors", "old.ckpt"}
    assert all(problem.reason.startswith(problem.path.name) for problem in folder.problems())


def test_shards_are_one_checkpoint_and_gguf_is_named(models, sd1_shapes, write_safetensors):
    folder = models / "Stable-diffusion"
    first, second = (f"big-0000{part}-of-00002.safetensors" for part in (1, 2))
    keys = list(sd1_shapes)
    for file, part in ((first, keys[:-1]), (second, keys[-1:])):
        write_safetensors(folder / file, {key: sd1_shapes[key] for key in part})
    weight_map = {key: second if key == keys[-1] else first for key in keys}
    (folder / "big.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "flux.gguf").write_bytes(b"GGUF")

    catalogue = CheckpointFolder(models)

    assert names(catalogue) == ["big"]
    assert [problem.path.name for problem in catalogue.problems()] == ["flux.gguf"]

    (folder / second).unlink()
    assert any("which is not beside it" in problem.reason for problem in CheckpointFolder(models).problems())


def test_the_default_is_the_preferred_else_the_built_in_else_the_first(models, put, caplog):
    put("zebra.safetensors")
    put("yak.safetensors")
    wish = ""
    folder = CheckpointFolder(models, preferred=lambda: wish)
    assert names(folder) == ["yak", "zebra"]

    put("atelier-sketchbook.safetensors")
    assert names(folder)[0] == "atelier-sketchbook"
    assert folder.checkpoint("").name == "atelier-sketchbook"

    wish = "zebra"
    assert names(folder) == ["zebra", "atelier-sketchbook", "yak"]
    assert folder.path("").name == "zebra.safetensors"

    wish = "gone"
    with caplog.at_level(logging.WARNING):
        assert folder.checkpoint("").name == "atelier-sketchbook"
    assert "'gone'" in caplog.text


def test_a_broken_file_is_a_problem_and_harms_no_other(models, put):
    put("good.safetensors")
    broken = put("broken.safetensors")
    broken.write_bytes(broken.read_bytes()[:-10])
    (models / "Stable-diffusion" / "dangling.safetensors").symlink_to(models / "nowhere")

    folder = CheckpointFolder(models)

    assert names(folder) == ["good"]
    assert len(folder.problems()) == 2
    with pytest.raises(UnsupportedModel, match="cut off"):
        folder.path("broken")


def test_what_changes_on_disk_is_seen(models, put):
    folder = CheckpointFolder(models)
    assert names(folder) == []

    path = put("new.safetensors")
    assert names(folder) == ["new"]

    path.write_bytes(b"")
    assert names(folder) == []
    assert "empty" in folder.problems()[0].reason

    path.unlink()
    assert folder.problems() == []


def test_a_configuration_put_beside_a_file_is_seen(models, put):
    path = put("a.safetensors")
    folder = CheckpointFolder(models)
    assert names(folder) == ["a"]

    path.with_suffix(".yaml").write_text("nonsense")

    assert names(folder) == []
    assert "a.yaml beside a.safetensors" in folder.problems()[0].reason


def test_an_unchanged_file_is_read_once(models, put, monkeypatch):
    put("a.safetensors")
    folder = CheckpointFolder(models)
    folder.checkpoints()
    monkeypatch.setattr("webui.checkpoints.scan.identify", lambda path: pytest.fail(f"{path} was read again"))

    assert names(folder) == ["a"]


def test_two_of_one_name_cannot_both_be_meant(models, put):
    put("a.safetensors")
    put("a.ckpt")

    folder = CheckpointFolder(models)

    assert folder.path("a").name == "a.ckpt"
    assert "same name as a.ckpt" in folder.problems()[0].reason


def test_a_diffusers_folder_is_one_checkpoint(models, put):
    folder = models / "Stable-diffusion" / "sub" / "whole.v2"
    put("sub/whole.v2/unet/diffusion_pytorch_model.safetensors")
    (folder / "model_index.json").write_text('{"_class_name": "FluxFillPipeline"}')

    catalogue = CheckpointFolder(models)

    assert names(catalogue) == []
    assert [problem.path for problem in catalogue.problems()] == [folder]
    with pytest.raises(UnsupportedModel, match="FluxFillPipeline"):
        catalogue.checkpoint("sub/whole.v2")


def test_a_link_back_up_ends(models, put):
    put("inside/a.safetensors")
    (models / "Stable-diffusion" / "inside" / "loop").symlink_to(models / "Stable-diffusion")

    assert names(CheckpointFolder(models)) == ["inside/a"]


def test_an_unknown_name_lists_the_known_ones(models, put):
    put("a.safetensors")

    with pytest.raises(CheckpointNotFound, match=r"'b'.*choose one of a\."):
        CheckpointFolder(models).checkpoint("b")


def test_an_empty_folder_says_where_to_put_one(models):
    with pytest.raises(CheckpointNotFound, match="Stable-diffusion; put one there"):
        CheckpointFolder(models).checkpoint("")


def test_a_missing_models_folder_is_told_at_the_start(tmp_path):
    with pytest.raises(UserError, match="none does not exist"):
        CheckpointFolder(tmp_path / "none")


def test_upscalers_are_the_built_in_ones_and_the_files(models):
    for name in (
        "ESRGAN/4x-Sharp.pth",
        "RealESRGAN/anime.safetensors",
        "ESRGAN/readme.md",
        "DAT/Lanczos.pth",
        "HAT/photos/real.pth",
        "SCUNet/noise.pth",
        "VAE/no.pth",
    ):
        (models / name).parent.mkdir(parents=True, exist_ok=True)
        (models / name).write_bytes(b"x")

    folder = CheckpointFolder(models)

    assert folder.upscalers() == ("Lanczos", "Nearest", "4x-Sharp", "anime", "real", "noise")
    assert folder.upscaler_path("anime") == models / "RealESRGAN" / "anime.safetensors"
    with pytest.raises(UpscalerNotFound, match=r"'spam'.*4x-Sharp"):
        folder.upscaler_path("spam")


def test_the_tiny_checkpoint_is_listed(tiny_checkpoint):
    info = CheckpointFolder(tiny_checkpoint).checkpoint("")

    assert (info.name, info.family, str(info.native_size)) == ("tiny-random", "sd1", "64x64")


def test_listing_loads_no_torch(tiny_checkpoint, tmp_path):
    """The page lists models while torch is still being imported in another thread."""
    models = shutil.copytree(tiny_checkpoint, tmp_path / "copy")
    program = (
        "import sys; from pathlib import Path; from webui.checkpoints.scan import CheckpointFolder;"
        f"assert CheckpointFolder(Path({str(models)!r})).checkpoints(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
