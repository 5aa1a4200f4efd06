"""Distils the autoencoder's decoder into a small one in TAESD's layout, for previews."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.vae import DecoderTiny
from safetensors.torch import save_file
from torch import Tensor

from tools.builtin_model.networks import PRESETS
from tools.builtin_model.training import Clock, Ema, as_pixels, device, learning_rate, picture_batches
from webui.checkpoints.load import load_checkpoint
from webui.checkpoints.loaded import LoadedCheckpoint
from webui.checkpoints.scan import CheckpointFolder

logger = logging.getLogger(__name__)

WIDTH = 32
BLOCKS = (2, 2, 1, 1)
PEAK = 2e-3


def _make() -> DecoderTiny:
    return DecoderTiny(
        in_channels=4,
        out_channels=3,
        num_blocks=BLOCKS,
        block_out_channels=(WIDTH,) * len(BLOCKS),
        upsampling_scaling_factor=2,
        act_fn="relu",
        upsample_fn="nearest",
    )


def distil(models: Path, name: str, pack: Path | None, out: Path, minutes: float, *, batch: int) -> None:
    """Trains for `minutes` towards what the autoencoder of checkpoint `name` makes of its latents, and writes `out`.

    The pictures are of the checkpoint's native size: drawn shapes, and drawings of the `pack` where one is given.
    """
    where = device()
    catalogue = CheckpointFolder(models)
    info = catalogue.checkpoint(name)
    checkpoint = load_checkpoint(catalogue.path(info.name), info, dtype=torch.float32, device=where)
    torch.manual_seed(5000)
    decoder = _make().to(where, memory_format=torch.channels_last)
    checkpoint.vae.to(memory_format=torch.channels_last)
    ema = Ema(decoder, 0.99)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=PEAK, betas=(0.9, 0.99), fused=True)
    batches = picture_batches(pack, PRESETS["small"], batch=batch, seed=5000, size=info.native_size.width)
    clock, step = Clock(minutes * 60), 0
    clock.start()
    while (fraction := clock.fraction) < 1.0:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(PEAK, fraction)
        pixels = as_pixels(next(batches)[0], where).contiguous(memory_format=torch.channels_last)
        with torch.autocast(where.type, torch.bfloat16):
            latents, wanted = _lesson(checkpoint, pixels)
            got = decoder(latents)
        loss = F.l1_loss(got.float(), wanted.float()) + F.mse_loss(got.float(), wanted.float())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        ema.update(decoder)
        step += 1
        if step % 100 == 0:
            logger.info("preview decoder step %d, %s, loss %.4f", step, clock.left, loss.item())
    state = ema.module.state_dict()
    named = {_original_name(key): weight.to("cpu", torch.float16).contiguous() for key, weight in state.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(named, out)
    latents, wanted = _lesson(checkpoint, as_pixels(next(batches)[0][:8], where))
    with torch.no_grad():
        got = ema.module(latents).clamp(-1, 1)
    psnr = 10 * math.log10(4 / (got - wanted.clamp(-1, 1)).square().mean().item())
    logger.info("wrote %s, %.2f MB; %.1f dB from the whole decoder", out, out.stat().st_size / 1e6, psnr)


@torch.no_grad()
def _lesson(checkpoint: LoadedCheckpoint, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Scaled latents of `pixels`, half of them with a little noise, and what the whole decoder makes of them."""
    latents = checkpoint.vae.encode(pixels).latent_dist.mean  # pyright: ignore[reportAttributeAccessIssue]
    # The latents of early steps are smoother or rougher than any picture's.
    latents = latents + 0.1 * torch.randn_like(latents) * (
        torch.rand(len(latents), 1, 1, 1, device=pixels.device) > 0.5
    )
    wanted = checkpoint.vae.decode(latents).sample  # pyright: ignore[reportAttributeAccessIssue]
    return latents * checkpoint.scaling_factor, wanted


def _original_name(name: str) -> str:
    """TAESD's own files count the clamp as layer 0."""
    _, layer, rest = name.split(".", 2)
    return f"{int(layer) + 1}.{rest}"
