"""Trains the UNet, with its text encoder, on cached latents."""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from tools.builtin_model import autoencoder, growing, networks
from tools.builtin_model.networks import LATENT_PIXELS, Preset
from tools.builtin_model.training import SAVE_EVERY_S, Clock, Ema, caption, device, grid, learning_rate, save, to_images
from webui.checkpoints.tokenizer import ClipTokenizer

logger = logging.getLogger(__name__)

PEAK = 1.2e-3
# Share of the budget for the first of two sizes.
SMALL_SHARE = 0.55
BETAS: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
}
SAMPLE_PROMPTS = (
    "a happy orange cat, 3d style, on a teal background",
    "a red circle on a blue background",
    "two green squares on a white background",
    "a penguin, flat style, on a yellow background",
    "a blue rocket, 3d style, on a white background",
    "a strawberry and a lemon on a purple background",
    "a small yellow star at the top left on a purple background",
    "a house, 3d style, on a green background",
    "a green cross and a red star on a gray background",
    "two foxes, flat style, on a black background",
    "a pink donut, 3d style",
    "a large sunflower, flat style, on a cyan background",
)


class _Guess(nn.Module):
    """UNet and text encoder as one module: the loss of their guess, in the one forward call that DDP wants."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        self.unet = networks.make_unet(preset)
        self.text = networks.make_text_encoder(preset)

    def forward(self, noisy: Tensor, timesteps: Tensor, ids: Tensor, target: Tensor) -> Tensor:
        with torch.autocast(noisy.device.type, torch.bfloat16):
            states = self.text(ids).last_hidden_state
            got = self.unet(noisy, timesteps, states).sample
        # The plain loss on v: min-SNR weights would all but ignore the noisiest steps, and it is there that the outline
        # of a thing on a plain ground is decided.
        return F.mse_loss(got.float(), target)


class _Captions:
    """Captions → (N, 77) token ids; a caption's ids are worked out once."""

    def __init__(self) -> None:
        self._tokenize = ClipTokenizer()
        self._known: dict[str, list[int]] = {}

    def __call__(self, captions: list[str]) -> Tensor:
        rows: list[list[int]] = []
        for text in captions:
            if text not in self._known:
                ids = [networks.START_TOKEN, *self._tokenize.encode(text)[: networks.TOKENS - 2], networks.END_TOKEN]
                # Padded with the end token, as Stable Diffusion 1 does.
                self._known[text] = ids + [networks.END_TOKEN] * (networks.TOKENS - len(ids))
            rows.append(self._known[text])
        return torch.tensor(rows)


def _batches(
    folder: Path, size: int, batch: int, rng: random.Random, where: torch.device
) -> Iterator[tuple[Tensor, list[str]]]:
    """Shuffled endless batches of latents of `size` and fresh captions, one in ten captions dropped for guidance."""
    data: dict[str, Any] = torch.load(folder / f"latents-{size}.pt", weights_only=True, map_location=where)
    order = list(range(len(data["told"])))
    while True:
        rng.shuffle(order)
        for start in range(0, len(order) - batch + 1, batch):
            chosen = order[start : start + batch]
            captions = ["" if rng.random() < 0.1 else caption(data["told"][index], rng) for index in chosen]
            yield data["latents"][chosen].float(), captions


def train(
    folder: Path,
    preset: Preset,
    minutes: float,
    *,
    batch: int,
    workers: int = 1,
    compiled: bool = False,
    grown_from: Path | None = None,
) -> None:
    """Trains UNet and text encoder into ``folder/unet.pt`` (v-prediction, EMA), in `workers` processes.

    On a CPU one process with one thread a core is faster than threads: these networks are small, and threads spend
    their time waiting for each other. `compiled` spends minutes on compiling the UNet first. `grown_from` is the
    ``unet.pt`` of a model with a level less, to begin with.
    """
    rendezvous = (folder / "rendezvous").resolve()
    rendezvous.unlink(missing_ok=True)
    arguments = (folder, preset, minutes, batch // workers, workers, compiled, grown_from, rendezvous.as_uri())
    torch.multiprocessing.spawn(_train, arguments, nprocs=workers)


def _train(
    rank: int,
    folder: Path,
    preset: Preset,
    minutes: float,
    batch: int,
    workers: int,
    compiled: bool,
    grown_from: Path | None,
    rendezvous: str,
) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if device().type == "cpu":
        torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=workers)
    path = folder / "unet.pt"
    where = device()
    model = _Guess(preset).to(where)
    if grown_from is not None:
        growing.begin(model, grown_from, preset)
    # Explicit products run on the matrix units where fused attention for the CPU does not: 1.4 × faster here.
    if where.type == "cpu":
        model.unet.set_attn_processor(AttnProcessor())
        model.text.set_attn_implementation("eager")
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    ema = Ema(model, 0.9985)
    clock, step = Clock(minutes * 60), 0
    if path.exists():
        state = torch.load(path, weights_only=True, map_location=where)
        model.load_state_dict(state["model"])
        ema.module.load_state_dict(state["ema"])
        optimizer.load_state_dict(state["optimizer"])
        clock.spent_s, step, ema.steps = state["spent_s"], state["step"], state["step"]
    if compiled:
        model.unet.compile()
    together = DistributedDataParallel(model) if workers > 1 else model
    tokenize = _Captions()
    rng = random.Random(3000 + step * workers + rank)
    torch.manual_seed(3000 + step * workers + rank)
    alphas = DDIMScheduler(**BETAS).alphas_cumprod.to(where)
    batches = _batches(folder, preset.sides[0], batch, rng, where)
    small = len(preset.sides) > 1
    clock.start()
    saved, running = clock.spent_s, torch.zeros((), device=where)
    while (fraction := _agree(clock.fraction)) < 1.0:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(PEAK, fraction)
        if small and fraction >= SMALL_SHARE:
            small = False
            batches = _batches(folder, preset.side, batch, rng, where)
        latents, captions = next(batches)
        timesteps = torch.randint(0, 1000, (batch,), device=where)
        alpha = alphas[timesteps].view(-1, 1, 1, 1)
        noise = torch.randn_like(latents)
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        target = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
        loss = together(noisy, timesteps, tokenize(captions).to(where), target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if rank > 0:
            continue
        ema.update(model)
        running += loss.detach()
        if step % 50 == 0:
            logger.info("unet step %d, %s, loss %.4f", step, clock.left, running.item() / 50)
            running.zero_()
        if clock.spent_s - saved > SAVE_EVERY_S or clock.fraction >= 1.0:
            saved = clock.spent_s
            state = {"model": model.state_dict(), "ema": ema.module.state_dict(), "optimizer": optimizer.state_dict()}
            save(path, {**state, "spent_s": clock.spent_s, "step": step})
            _show(ema.module, folder, preset, tokenize)
    distributed.destroy_process_group()


def _agree(fraction: float) -> float:
    """The first worker's clock, for all: they must stop at the same step."""
    said = torch.tensor([fraction], dtype=torch.float64)
    distributed.broadcast(said, src=0)
    return said.item()


@torch.no_grad()
def _show(model: Any, folder: Path, preset: Preset, tokenize: _Captions) -> None:
    """Writes ``folder/samples.png``: `SAMPLE_PROMPTS` by 15 steps of DDIM at guidance 4."""
    where = device()
    vae = autoencoder.load(folder, preset).to(where)
    scaling_factor = autoencoder.scaling_factor(folder, preset)
    scheduler = DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False)
    scheduler.set_timesteps(15)
    prompts = list(SAMPLE_PROMPTS)
    ids = tokenize(prompts + [""] * len(prompts)).to(where)
    side = preset.side // LATENT_PIXELS
    start = torch.randn(len(prompts), 4, side, side, generator=torch.Generator().manual_seed(1))
    latents = start.to(where)
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.autocast(where.type, torch.bfloat16))
        states = model.text(ids).last_hidden_state
        for timestep in scheduler.timesteps:
            wanted, plain = model.unet(torch.cat([latents, latents]), timestep, states).sample.float().chunk(2)
            latents = scheduler.step(plain + 4 * (wanted - plain), timestep, latents).prev_sample  # pyright: ignore
        pixels = vae.decode(latents / scaling_factor).sample  # pyright: ignore[reportAttributeAccessIssue]
    grid(to_images(pixels.clamp(-1, 1)), 4).save(folder / "samples.png")
