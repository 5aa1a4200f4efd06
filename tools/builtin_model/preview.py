"""Distils the autoencoder's decoder into a small one in TAESD's layout, for previews."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.vae import DecoderTiny
from safetensors.torch import save_file

from tools.builtin_model import autoencoder
from tools.builtin_model.networks import IMAGE_SIZE, TRAINING_SIZES, Preset
from tools.builtin_model.training import Clock, Ema, device, grid, learning_rate, to_images

logger = logging.getLogger(__name__)

WIDTH = 32
BLOCKS = (2, 2, 1, 1)
CROP = 16
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


def distil(folder: Path, preset: Preset, out: Path, minutes: float, *, batch: int) -> None:
    """Trains on the cached latents for `minutes`, towards what the autoencoder makes of them, and writes `out`."""
    where = device()
    vae = autoencoder.load(folder, preset).to(where)
    factor = autoencoder.scaling_factor(folder)
    stored = [torch.load(folder / f"latents-{size}.pt", weights_only=True)["latents"] for size in TRAINING_SIZES]
    torch.manual_seed(5000)
    decoder = _make().to(where)
    ema = Ema(decoder, 0.99)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=PEAK, betas=(0.9, 0.99), fused=True)
    clock, step = Clock(minutes * 60), 0
    clock.start()
    while (fraction := clock.fraction) < 1.0:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(PEAK, fraction)
        latents = stored[step % len(stored)]
        latents = latents[torch.randint(0, len(latents), (batch,))].float().to(where)
        y, x = (int(torch.randint(0, latents.shape[-1] - CROP + 1, ())) for _ in range(2))
        latents = latents[:, :, y : y + CROP, x : x + CROP].contiguous()
        with torch.no_grad():
            wanted = vae.decode(latents / factor).sample  # pyright: ignore[reportAttributeAccessIssue]
        got = decoder(latents)
        loss = F.l1_loss(got, wanted) + F.mse_loss(got, wanted)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        ema.update(decoder)
        step += 1
        if step % 100 == 0:
            logger.info("preview decoder step %d, %s, loss %.4f", step, clock.left, loss.item())
    state = ema.module.state_dict()
    named = {_original_name(name): weight.to("cpu", torch.float16).contiguous() for name, weight in state.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(named, out)
    logger.info("wrote %s, %.1f MB", out, out.stat().st_size / 1e6)
    with torch.no_grad():
        latents = stored[-1][:8].float().to(where)
        wanted = vae.decode(latents / factor).sample  # pyright: ignore[reportAttributeAccessIssue]
        both = torch.cat([wanted, ema.module(latents)]).clamp(-1, 1)
    grid(to_images(both), 8).resize((8 * IMAGE_SIZE // 2, IMAGE_SIZE)).save(folder / "preview.png")


def _original_name(name: str) -> str:
    """TAESD's own files count the clamp as layer 0."""
    _, layer, rest = name.split(".", 2)
    return f"{int(layer) + 1}.{rest}"
