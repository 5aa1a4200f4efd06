"""What the manager works with once torch is there: device, precision, loaded models, attention and encoded prompts."""

from __future__ import annotations

import functools
import gc
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from webui.checkpoints.load import load_checkpoint
from webui.checkpoints.loaded import LoadedCheckpoint
from webui.core.errors import UserError
from webui.engine.conditioning import PromptCache
from webui.engine.generate import Bench
from webui.engine.phases import Phases
from webui.engine.residents import Resident, Residents
from webui.engine.upscale import UpscalerNetwork, load_upscaler
from webui.hardware.attention.processor import head_sizes, patched
from webui.hardware.attention.selector import AUTOMATIC, AttentionChoice, select_attention
from webui.hardware.device import choose_device, choose_dtype, describe
from webui.hardware.memory import free_bytes

if TYPE_CHECKING:
    from webui.checkpoints.scan import CheckpointFolder

logger = logging.getLogger(__name__)

# What is left beside the weights is for activations and for everybody else.
SHARE_FOR_WEIGHTS = 0.6


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A loaded checkpoint, and the widths of its attention heads, which take a walk through all modules to find."""

    checkpoint: LoadedCheckpoint
    unet_heads: frozenset[int]
    vae_heads: frozenset[int]


class Workshop:
    """Owned by the manager, which lets one thread in at a time.

    Loaded models together take at most `budget_bytes`; None means a share of what is free on the device now.
    """

    def __init__(self, folder: CheckpointFolder, *, budget_bytes: int | None = None) -> None:
        self._folder = folder
        self.device = choose_device()
        self.dtype = choose_dtype(self.device)
        self.device_name = describe(self.device)
        self._budget_bytes = int(free_bytes(self.device) * SHARE_FOR_WEIGHTS) if budget_bytes is None else budget_bytes
        self.residents: Residents[Prepared | UpscalerNetwork] = Residents(self._budget_bytes)
        self._prompts = PromptCache()
        self._choose = functools.lru_cache(maxsize=32)(self._choose_attention)

    @contextmanager
    def bench(self, name: str, *, attention: str) -> Iterator[Bench]:
        """Everything for one request with checkpoint `name` ("" = the default), loaded if need be.

        Inside the block its networks attend by the kernel `attention`, or by the best one for "auto". Raises
        `CheckpointNotFound`, `UnsupportedModel` or `UserError`; what was loaded before is then still there.
        """
        phases = Phases()
        with phases("load"):
            prepared = self._checkpoint(name)
            checkpoint = prepared.checkpoint
            for_unet = self._choose(prepared.unet_heads, attention)
            for_vae = self._choose_for_vae(prepared.vae_heads, attention)
        with patched(checkpoint.unet, for_unet), patched(checkpoint.vae, for_vae):
            yield Bench(
                checkpoint=checkpoint,
                device=self.device,
                attention=for_unet.name,
                prompts=self._prompts,
                phases=phases,
            )

    def upscaler(self, name: str) -> UpscalerNetwork:
        """The upscaler network of that name; raises `UpscalerNotFound` or `UnsupportedModel`."""
        path = self._folder.upscaler_path(name)

        def load() -> Resident[Prepared | UpscalerNetwork]:
            network = load_upscaler(path, self.device)
            return Resident(
                name=name, family="upscaler", component_bytes={"network": network.weight_bytes}, model=network
            )

        model = self.residents.get(_identity(path), load, expected_bytes=path.stat().st_size).model
        if not isinstance(model, UpscalerNetwork):
            raise TypeError(f"{path} is held as {type(model).__name__}")
        return model

    def release_memory(self) -> None:
        """Gives up what is not needed at once, after memory ran out."""
        self.residents.release_others()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _checkpoint(self, name: str) -> Prepared:
        info = self._folder.checkpoint(name)
        path = self._folder.path(info.name)
        expected = _weight_bytes(path) * (2 if self.dtype == torch.float32 else 1)  # files hold float16
        # What does not fit on the device waits in main memory, and each part visits the device when it works.
        home = self.device if expected <= self._budget_bytes else torch.device("cpu")

        def load() -> Resident[Prepared | UpscalerNetwork]:
            loaded = load_checkpoint(path, info, dtype=self.dtype, device=home)
            prepared = Prepared(
                checkpoint=loaded,
                unet_heads=frozenset(head_sizes(loaded.unet)),
                vae_heads=frozenset(head_sizes(loaded.vae)),
            )
            return Resident(
                name=info.name, family=loaded.family, component_bytes=loaded.bytes_by_component, model=prepared
            )

        model = self.residents.get(_identity(path), load, expected_bytes=expected).model
        if not isinstance(model, Prepared):
            raise TypeError(f"{path} is held as {type(model).__name__}")
        return model

    def _choose_attention(self, sizes: frozenset[int], wish: str) -> AttentionChoice:
        return select_attention(self.device, self.dtype, sizes, wish)

    def _choose_for_vae(self, sizes: frozenset[int], wish: str) -> AttentionChoice:
        """The wish where it works: a VAE's one wide head is more than some kernels take, and no reason to fail."""
        try:
            return self._choose(sizes, wish)
        except UserError as error:
            logger.info("The VAE takes its own attention: %s", error)
            return self._choose(sizes, AUTOMATIC)


def _identity(path: Path) -> tuple[Path, int]:
    """Tells a file from another that took its name later."""
    return path, path.stat().st_mtime_ns


def _weight_bytes(path: Path) -> int:
    """The size of a single file, or of a diffusers folder's weights."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*.safetensors"))
