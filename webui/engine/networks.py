"""What a request's words ask for beside the checkpoint: LoRAs and embeddings, found, read, merged, named in infotexts.

`Shelf` owns the folders and what was read of them and outlives requests; `Networks` is what one request runs with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from webui.checkpoints.detect import FAMILIES
from webui.checkpoints.embeddings import Embedding, EmbeddingFolder, Embeddings
from webui.checkpoints.hash import ModelHashes, PendingHash
from webui.checkpoints.loaded import LoadedCheckpoint
from webui.checkpoints.lora.read import LoraWeights, read_lora
from webui.checkpoints.lora.scan import LoraFile, LoraFolder
from webui.core.errors import UnsupportedModel
from webui.core.extra_networks import LoraTag, take_loras
from webui.core.prompt.texts import strip_comments
from webui.core.requests import DiffusionRequest
from webui.engine.patches import UNET, WeightPatches, Wish

EMBEDDING_FOLDER = "embeddings"
KEPT_FILES = 4  # LoRAs in main memory beside those in use


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Networks:
    """What is merged into the checkpoint, and which embeddings there are, while one request runs.

    `text_state` is different for two requests whose LoRAs change the text encoders differently. `notices` are sentences
    for the person at the page.
    """

    embeddings: Embeddings
    text_state: str
    lora_hashes: Mapping[str, PendingHash]
    embedding_hashes: Mapping[str, PendingHash]
    notices: tuple[str, ...]

    def infotext(self) -> dict[str, str]:
        """A1111's pairs "Lora hashes" and "TI hashes"; waits for hashes that are still being made."""
        return {"Lora hashes": _listed(self.lora_hashes), "TI hashes": _listed(self.embedding_hashes)}


def joined(one: Mapping[str, str], other: Mapping[str, str]) -> dict[str, str]:
    """The pairs of `Networks.infotext` of two passes as one picture's, each name once."""
    keys = dict.fromkeys([*one, *other])
    named = {key: [*one.get(key, "").split(", "), *other.get(key, "").split(", ")] for key in keys}
    return {key: ", ".join(dict.fromkeys(filter(None, entries))) for key, entries in named.items()}


class Shelf:
    """LoRAs and embeddings of a models folder. Owned by the manager, which lets one thread in at a time.

    Embeddings lie in the models folder or, as A1111 has it, beside it. `conversions` is where converted pickles are
    kept.
    """

    def __init__(self, models: Path, hashes: ModelHashes, *, conversions: Path | None = None) -> None:
        self._loras = LoraFolder(models)
        folders = (models / EMBEDDING_FOLDER, models.parent / EMBEDDING_FOLDER)
        self._embeddings = EmbeddingFolder(folders, conversions=conversions)
        self._hashes = hashes
        self._conversions = conversions
        self._read: dict[LoraFile, LoraWeights] = {}

    def use(
        self, request: DiffusionRequest, checkpoint: LoadedCheckpoint, patches: WeightPatches, *, device: torch.device
    ) -> Networks:
        """Merges the LoRAs that `request` names into `checkpoint`, whose `patches` these are, and nothing else.

        Raises `LoraNotFound`, and `UnsupportedModel` for a file that is damaged, of an unknown kind or made for another
        family; the weights are then as they were.
        """
        # Comments go first: what is commented out is not asked for.
        prompt, tags = take_loras(strip_comments(request.prompt))
        files = [self._loras.find(tag.name) for tag in tags]
        used = {file: self._read.get(file) or read_lora(file, conversions=self._conversions) for file in files}
        # The newest last; a run that compares some LoRAs reads each of them once.
        others = [(file, lora) for file, lora in self._read.items() if file not in used]
        self._read = dict([*others[max(0, len(others) - KEPT_FILES) :], *used.items()])
        wishes = [self._wish(tag, file, checkpoint, patches) for tag, file in zip(tags, files, strict=True)]
        embeddings = self._embeddings.current()
        named = _used(embeddings, (prompt, request.negative_prompt), checkpoint)
        patches.apply(wishes, device=device)
        return Networks(
            embeddings=embeddings,
            text_state=_text_state(wishes),
            lora_hashes={tag.name: self._hashes.autov3(file.path) for tag, file in zip(tags, files, strict=True)},
            embedding_hashes={each.name: self._hashes.autov3(each.path) for each in named},
            notices=tuple(_notices(wishes)),
        )

    def _wish(self, tag: LoraTag, file: LoraFile, checkpoint: LoadedCheckpoint, patches: WeightPatches) -> Wish:
        lora = self._read[file]
        try:
            fitted = patches.fit(lora)
        except ValueError as error:
            made_for = f" was made for {lora.family} and" if lora.family else ""
            family = next((each.title for each in FAMILIES if each.name == checkpoint.family), checkpoint.family)
            raise UnsupportedModel(
                f"The LoRA {tag.name!r}{made_for} does not fit the checkpoint {checkpoint.info.name!r}"
                f" ({family}): {error}. Choose another checkpoint, or take it out of the prompt."
            ) from error
        return Wish(file=file, lora=fitted, text_weight=tag.text_weight, unet_weight=tag.unet_weight, rank=tag.rank)


def _used(embeddings: Embeddings, texts: Sequence[str], checkpoint: LoadedCheckpoint) -> list[Embedding]:
    """The embeddings that the texts name and the checkpoint's encoders can read, in order of name."""
    used = {
        piece.name: piece
        for text in texts
        for piece in embeddings.split(text)
        if isinstance(piece, Embedding) and _is_for(piece, checkpoint)
    }
    return [used[name] for name in sorted(used)]


def _is_for(embedding: Embedding, checkpoint: LoadedCheckpoint) -> bool:
    return all(
        embedding.vectors_for(encoder.name, encoder.module.config.hidden_size) is not None
        for encoder in checkpoint.text_encoders
    )


def _text_state(wishes: Sequence[Wish]) -> str:
    """What the wishes do to the text encoders, in an order that depends on the LoRAs alone."""
    return "\n".join(
        sorted(
            f"{wish.file} {wish.text_weight!r} {wish.rank}"
            for wish in wishes
            if wish.text_weight and any(target.component != UNET for target in wish.lora.changes)
        )
    )


def _notices(wishes: Sequence[Wish]) -> list[str]:
    return [
        f"The LoRA {wish.file.name!r} has {wish.lora.missing} modules that this checkpoint lacks; the others are used."
        for wish in wishes
        if wish.lora.missing
    ]


def _listed(hashes: Mapping[str, PendingHash]) -> str:
    """A1111's list of names and hashes, whose names hold neither colons nor commas."""
    digits = ((name.replace(":", "").replace(",", ""), digest()) for name, digest in hashes.items())
    return ", ".join(f"{name}: {digest}" for name, digest in digits if digest)
