"""Which model files a pasted infotext may mean: their names, with the hashes that are known without reading a file."""

from __future__ import annotations

from pathlib import Path

from webui.checkpoints.hash import SHORT, SHORT_AUTOV3, HashKind, ModelHashes
from webui.checkpoints.lora.scan import LoraFolder
from webui.checkpoints.scan import CheckpointFolder
from webui.core.infotext import KnownModels


class KnownFiles:
    """The checkpoints, VAEs and LoRAs of `folder` as they are at each call. Any thread may call it."""

    def __init__(self, folder: CheckpointFolder, hashes: ModelHashes) -> None:
        self._folder = folder
        self._hashes = hashes
        self._loras = LoraFolder(folder.models)

    def __call__(self) -> KnownModels:
        """All of them; a LoRA stands under its name and under the name that its trainer gave it."""
        folder = self._folder
        checkpoints = {info.name: folder.path(info.name) for info in folder.checkpoints()}
        vaes = {name: folder.vae_path(name, checkpoint=Path(), preferred="") for name in folder.vaes()}
        return KnownModels(
            checkpoints={name: self._short(path) for name, path in checkpoints.items()},
            vaes={name: "" if path is None else self._short(path) for name, path in vaes.items()},
            loras=self._lora_hashes(),
        )

    def _short(self, path: Path) -> str:
        return self._hashes.known(path, HashKind.SHA256)[:SHORT]

    def _lora_hashes(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for file in self._loras.files():
            kind = HashKind.AUTOV3 if file.path.suffix.lower() == ".safetensors" else HashKind.SHA256
            digest = self._hashes.known(file.path, kind)[:SHORT_AUTOV3]
            for name in (file.name, self._loras.alias(file)):
                if name:
                    found[name] = digest
        return found
