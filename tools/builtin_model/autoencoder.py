"""Trains the autoencoder, and encodes the training pictures with it once for the UNet."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from tools.builtin_model import networks
from tools.builtin_model.networks import Preset
from tools.builtin_model.training import (
    SAVE_EVERY_S,
    Clock,
    Ema,
    Told,
    as_pixels,
    device,
    grid,
    learning_rate,
    picture_batches,
    save,
    to_images,
)

logger = logging.getLogger(__name__)

CROP = 64
PEAK = 8e-4


def _loss(got: Tensor, wanted: Tensor) -> Tensor:
    def slopes(x: Tensor) -> tuple[Tensor, Tensor]:
        return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]

    gradient = sum(F.l1_loss(a, b) for a, b in zip(slopes(got), slopes(wanted), strict=True))
    return F.l1_loss(got, wanted) + F.mse_loss(got, wanted) + 0.5 * gradient


def _crops(pixels: Tensor, each: int) -> Tensor:
    """`each` random crops of `CROP` pixels from every picture, two in three from its middle half, where things are."""
    room = pixels.shape[-1] - CROP
    cuts: list[Tensor] = []
    for picture in pixels:
        for _ in range(each):
            low, high = (room // 5, room * 4 // 5) if torch.rand(()) < 0.67 else (0, room)
            x, y = (int(torch.randint(low, high + 1, ())) for _ in range(2))
            cuts.append(picture[:, y : y + CROP, x : x + CROP])
    return torch.stack(cuts)


def _resume(path: Path, vae: nn.Module, optimizer: torch.optim.Optimizer, ema: Ema, clock: Clock) -> int:
    """Puts back what `_keep` wrote to `path`, if it did; returns the step to go on from."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True, map_location=device())
    ema.module.load_state_dict(state["ema"])
    vae.load_state_dict(state["vae"])
    optimizer.load_state_dict(state["optimizer"])
    clock.spent_s, ema.steps = state["spent_s"], state["step"]
    return state["step"]


def _keep(path: Path, vae: nn.Module, optimizer: torch.optim.Optimizer, ema: Ema, clock: Clock, step: int) -> None:
    """Writes the whole state of a stage."""
    state = {"vae": vae.state_dict(), "ema": ema.module.state_dict(), "optimizer": optimizer.state_dict()}
    save(path, {**state, "spent_s": clock.spent_s, "step": step})


def train(folder: Path, pack: Path, preset: Preset, minutes: float, *, batch: int) -> None:
    """Trains into ``folder/vae.pt``; crops of `CROP` pixels first, whole pictures for the last 40%.

    `batch` counts crops; whole pictures come a fourth as many at a time.
    """
    path = folder / "vae.pt"
    where = device()
    vae = networks.make_vae(preset).to(where, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=PEAK, betas=(0.9, 0.99), weight_decay=0.01)
    clock, ema = Clock(minutes * 60), Ema(vae, 0.998)
    step = _resume(path, vae, optimizer, ema, clock)
    torch.manual_seed(1000 + step)
    batches = picture_batches(pack, preset, batch=batch // 4, seed=1000 + step)
    clock.start()
    saved = clock.spent_s
    while (fraction := clock.fraction) < 1.0:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(PEAK, fraction)
        pixels = as_pixels(next(batches)[0], where)
        pixels = pixels if fraction > 0.6 else _crops(pixels, 4)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        with torch.autocast(where.type, torch.bfloat16):
            mean = vae.encode(pixels).latent_dist.mean
            got = vae.decode(mean + 0.05 * torch.randn_like(mean)).sample
        # The mean with a little noise: a sample of the posterior would stay at the mean picture for hundreds of steps.
        loss = _loss(got.float(), pixels) + 1e-3 * mean.float().square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        ema.update(vae)
        step += 1
        if step % 50 == 0:
            logger.info("vae step %d, %s, loss %.4f", step, clock.left, loss.item())
        if clock.spent_s - saved > SAVE_EVERY_S or clock.fraction >= 1.0:
            saved = clock.spent_s
            _keep(path, vae, optimizer, ema, clock, step)
            _show(ema.module, pack, preset, folder / "vae.png")


def train_decoder(folder: Path, pack: Path, preset: Preset, minutes: float, *, batch: int) -> None:
    """Trains the decoder alone into ``folder/decoder.pt``, on whole pictures of the preset's own side.

    The encoder stays, so cached latents stay valid, and this may run beside the UNet's training.
    """
    path = folder / "decoder.pt"
    where = device()
    vae = load(folder, preset).to(where, memory_format=torch.channels_last).requires_grad_(False)
    taught = nn.ModuleList([vae.post_quant_conv, vae.decoder]).requires_grad_(True)
    optimizer = torch.optim.AdamW(taught.parameters(), lr=PEAK, betas=(0.9, 0.99), weight_decay=0.01)
    clock, ema = Clock(minutes * 60), Ema(vae, 0.998)
    step = _resume(path, vae, optimizer, ema, clock)
    torch.manual_seed(1500 + step)
    batches = picture_batches(pack, preset, batch=batch, seed=1500 + step)
    clock.start()
    saved = clock.spent_s
    while (fraction := clock.fraction) < 1.0:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(PEAK, fraction)
        pixels = as_pixels(next(batches)[0], where).contiguous(memory_format=torch.channels_last)
        with torch.autocast(where.type, torch.bfloat16):
            with torch.no_grad():
                mean = vae.encode(pixels).latent_dist.mean  # pyright: ignore[reportAttributeAccessIssue]
            # A little noise, for what the UNet makes is never quite on the encoder's path.
            got = vae.decode(mean + 0.05 * torch.randn_like(mean)).sample  # pyright: ignore[reportAttributeAccessIssue]
        loss = _loss(got.float(), pixels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(taught.parameters(), 1.0)
        optimizer.step()
        ema.update(vae)
        step += 1
        if step % 50 == 0:
            logger.info("decoder step %d, %s, loss %.4f", step, clock.left, loss.item())
        if clock.spent_s - saved > SAVE_EVERY_S or clock.fraction >= 1.0:
            saved = clock.spent_s
            _keep(path, vae, optimizer, ema, clock, step)
            _show(ema.module, pack, preset, folder / "vae.png")


def load(folder: Path, preset: Preset) -> AutoencoderKL:
    """The trained autoencoder of ``folder/decoder.pt``, or else ``vae.pt``, on the CPU."""
    path = folder / "decoder.pt"
    vae = networks.make_vae(preset)
    state = torch.load(path if path.exists() else folder / "vae.pt", weights_only=True, map_location="cpu")
    vae.load_state_dict(state["ema"])
    return vae.eval()


def scaling_factor(folder: Path, preset: Preset) -> float:
    """What brings the latents to unit deviation, as `cache_latents` found it."""
    return float(torch.load(folder / f"latents-{preset.sides[0]}.pt", weights_only=True, mmap=True)["scaling_factor"])


@torch.no_grad()
def _show(vae: Any, pack: Path, preset: Preset, path: Path) -> None:
    pixels = as_pixels(next(picture_batches(pack, preset, batch=8, seed=7))[0], device())
    with torch.autocast(device().type, torch.bfloat16):
        got = vae.decode(vae.encode(pixels).latent_dist.mean).sample.float().clamp(-1, 1)
    psnr = 10 * math.log10(4 / (got - pixels).square().mean().item())
    logger.info("vae PSNR over 8 held-out pictures: %.1f dB", psnr)
    grid(to_images(torch.cat([pixels, got])), 8).save(path)


@torch.no_grad()
def cache_latents(folder: Path, pack: Path, preset: Preset, count: int, size: int) -> None:
    """Encodes `count` pictures of `size` pixels into ``folder/latents-SIZE.pt``: latents, and what they show.

    The smallest size comes first: its latents are scaled to unit deviation, and the others by the same factor.
    """
    where = device()
    vae = load(folder, preset).to(where, memory_format=torch.channels_last)
    latents: list[Tensor] = []
    told: list[Told] = []
    batches = picture_batches(pack, preset, batch=32, seed=2000 + size, size=size)
    while len(told) < count:
        arrays, rows = next(batches)
        with torch.autocast(where.type, torch.bfloat16):
            pixels = as_pixels(arrays, where).contiguous(memory_format=torch.channels_last)
            mean = vae.encode(pixels).latent_dist.mean  # pyright: ignore[reportAttributeAccessIssue]
        latents.append(mean.float().cpu())
        told += rows
        if len(told) % 1600 == 0:
            logger.info("encoded %d of %d pictures", len(told), count)
    stack = torch.cat(latents)
    factor = 1 / stack.std().item() if size == preset.sides[0] else scaling_factor(folder, preset)
    logger.info("scaling factor %.4f, channel means %s", factor, (stack * factor).mean((0, 2, 3)))
    save(
        folder / f"latents-{size}.pt",
        {"latents": (stack * factor).half(), "told": told, "scaling_factor": factor},
    )
