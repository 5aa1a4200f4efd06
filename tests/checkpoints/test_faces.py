"""Which files restore faces: told by their weights, as other programs put detectors beside them."""

import pytest

from webui.checkpoints.scan import CheckpointFolder
from webui.core.errors import ModelNotFound

GFPGAN = {"toRGB.0.weight": (1,), "stylegan_decoder.style_mlp.1.weight": (1, 1)}
CODEFORMER = {"params_ema.position_emb": (1, 1), "params_ema.idx_pred_layer.1.weight": (1, 1)}


@pytest.fixture
def models(tmp_path, write_safetensors):
    write_safetensors(tmp_path / "GFPGAN" / "GFPGANv1.4.safetensors", GFPGAN)
    write_safetensors(tmp_path / "GFPGAN" / "detection_Resnet50_Final.safetensors", {"body.conv1.weight": (1,)})
    (tmp_path / "GFPGAN" / "broken.pth").write_bytes(b"")
    (tmp_path / "GFPGAN" / "notes.txt").write_text("GFPGAN goes here")
    write_safetensors(tmp_path / "Codeformer" / "codeformer.safetensors", CODEFORMER)
    return tmp_path


def test_restorers_are_told_from_what_lies_beside_them(models):
    catalogue = CheckpointFolder(models)
    assert catalogue.face_restorers() == ("GFPGANv1.4", "codeformer")
    assert catalogue.face_restorer_path("codeformer") == models / "Codeformer" / "codeformer.safetensors"


def test_a_missing_one_is_told(models, tmp_path_factory):
    with pytest.raises(ModelNotFound, match=r"'sharp'; choose one of GFPGANv1\.4, codeformer"):
        CheckpointFolder(models).face_restorer_path("sharp")
    empty = tmp_path_factory.mktemp("none")
    with pytest.raises(ModelNotFound, match=r"put GFPGANv1\.4\.pth into .*GFPGAN, or codeformer\.pth into"):
        CheckpointFolder(empty).face_restorer_path("sharp")
