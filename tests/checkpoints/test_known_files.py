"""What a pasted text may mean: names of the folder, and hashes that somebody has made already."""

from __future__ import annotations

import hashlib

import torch
from safetensors.torch import save_file

from webui.checkpoints.hash import HashKind, ModelHashes
from webui.checkpoints.known import KnownFiles
from webui.checkpoints.scan import CheckpointFolder


def test_names_and_the_hashes_that_are_known(tiny_checkpoint, tmp_path):
    models = tmp_path / "models"
    (models / "Lora" / "folder").mkdir(parents=True)
    (models / "Stable-diffusion").symlink_to(tiny_checkpoint / "Stable-diffusion")
    lora = models / "Lora" / "folder" / "one.safetensors"
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(1, 1)}, lora, metadata={"ss_output_name": "trained"})
    folder, hashes = CheckpointFolder(models), ModelHashes()
    known_files = KnownFiles(folder, hashes)

    known = known_files()
    assert known.checkpoints == {"tiny-random": ""}
    assert known.loras == {"folder/one": "", "trained": ""}

    digest = hashes.short_hash(folder.path("tiny-random"))()
    autov3 = hashes.autov3(lora)()
    known = known_files()
    assert known.checkpoints == {"tiny-random": digest}
    assert digest == hashlib.sha256(folder.path("tiny-random").read_bytes()).hexdigest()[:10]
    assert known.loras == {"folder/one": autov3, "trained": autov3}


def test_what_nobody_hashed_is_not_hashed_now(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"weights")
    hashes = ModelHashes()
    assert hashes.known(file, HashKind.SHA256) == ""
    assert hashes.known(tmp_path / "gone", HashKind.SHA256) == ""
    assert len(hashes.short_hash(file)()) == 10
    assert hashes.known(file, HashKind.SHA256) == hashlib.sha256(b"weights").hexdigest()
    file.write_bytes(b"other weights")
    assert hashes.known(file, HashKind.SHA256) == ""
