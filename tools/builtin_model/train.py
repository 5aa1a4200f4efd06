"""Trains the built-in model: first the autoencoder, then the UNet with its text encoder on cached latents.

Every stage has a time budget, shapes its learning rate over that budget, saves its whole state every few minutes and
continues from there when started again. Runs on CUDA when there is one, otherwise on the CPU in bfloat16 autocast.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from diffusers.models.attention_processor import AttnProcessor
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from tools.builtin_model import networks
from tools.builtin_model.scenes import Scene, caption, draw, random_scene

logger = logging.getLogger(__name__)

SAVE_EVERY_S = 180.0
BETAS: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
}
SAMPLE_PROMPTS = (
    "a red circle on a blue background",
    "two green squares on a white background",
    "a small yellow star at the top left on a purple background",
    "a pink heart on a black background",
    "a large blue triangle on an orange background",
    "three white rings on a red background",
    "a black diamond on a yellow background",
    "a green cross and a red star on a gray background",
)


def device() -> torch.device:
    """CUDA when there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(slots=True)
class Clock:
    """Time spent on a stage, over all its sessions, against its budget (seconds)."""

    budget_s: float
    spent_s: float = 0.0
    _since: float = 0.0

    def start(self) -> None:
        self._since = time.monotonic() - self.spent_s

    @property
    def fraction(self) -> float:
        """Share of the budget that is spent, 0…1."""
        self.spent_s = time.monotonic() - self._since
        return min(1.0, self.spent_s / self.budget_s)


def learning_rate(peak: float, fraction: float) -> float:
    """Two per cent of linear warm-up, then a cosine down to a hundredth of `peak`."""
    if fraction < 0.02:
        return peak * (0.02 + 0.98 * fraction / 0.02)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (fraction - 0.02) / 0.98)))


def to_tensor(images: list[Image.Image]) -> Tensor:
    """RGB pictures of one size → (N, 3, H, W) in -1…1."""
    stack = np.stack([np.asarray(image) for image in images])
    return torch.from_numpy(stack).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def to_images(pixels: Tensor) -> list[Image.Image]:
    """(N, 3, H, W) in -1…1 → RGB pictures."""
    array = pixels.float().add(1).mul(127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(picture) for picture in array]


def grid(images: list[Image.Image], columns: int) -> Image.Image:
    """A contact sheet of pictures of one size."""
    width, height = images[0].size
    rows = math.ceil(len(images) / columns)
    sheet = Image.new("RGB", (columns * (width + 4), rows * (height + 4)), "white")
    for index, image in enumerate(images):
        sheet.paste(image, (index % columns * (width + 4), index // columns * (height + 4)))
    return sheet


def _save(path: Path, state: dict[str, Any]) -> None:
    temporary = path.with_suffix(".partial")
    torch.save(state, temporary)
    temporary.replace(path)


class Ema:
    """An exponential moving average of a module's weights, with a decay that grows at the start."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self.module = copy.deepcopy(module).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for average, value in zip(self.module.parameters(), module.parameters(), strict=True):
            average.lerp_(value, 1 - decay)


def _scene_pictures(rng: random.Random, count: int, size: int) -> Tensor:
    """Drawn pictures of 128 px, or random crops of them where `size` is smaller."""
    images: list[Image.Image] = []
    for _ in range(count):
        image = draw(random_scene(rng), networks.IMAGE_SIZE, rng)
        if size < networks.IMAGE_SIZE:
            x, y = (rng.randrange(0, networks.IMAGE_SIZE - size + 1) for _ in range(2))
            image = image.crop((x, y, x + size, y + size))
        images.append(image)
    return to_tensor(images)


def _autoencoder_loss(got: Tensor, wanted: Tensor) -> Tensor:
    def slopes(x: Tensor) -> tuple[Tensor, Tensor]:
        return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]

    gradient = sum(F.l1_loss(a, b) for a, b in zip(slopes(got), slopes(wanted), strict=True))
    return F.l1_loss(got, wanted) + F.mse_loss(got, wanted) + 0.5 * gradient


def train_vae(folder: Path, minutes: float, *, decoder_only: bool = False) -> None:
    """Trains the autoencoder into ``folder/vae.pt``; crops of 64 px first, whole pictures for the last 45%.

    With `decoder_only` a trained autoencoder's decoder is sharpened on whole pictures for `minutes`, and its latents,
    which the UNet has learnt, stay as they are; that stage starts afresh each time.
    """
    path = folder / "vae.pt"
    where = device()
    vae = networks.make_vae().to(where, memory_format=torch.channels_last)
    trained = [vae.decoder, vae.post_quant_conv] if decoder_only else [vae]
    peak = 3e-4 if decoder_only else 8e-4
    parameters = [parameter for module in trained for parameter in module.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=peak, betas=(0.9, 0.99), weight_decay=0.01)
    clock, step = Clock(minutes * 60), 0
    ema = Ema(vae, 0.998)
    state: dict[str, Any] = {}
    if path.exists():
        state = torch.load(path, weights_only=True)
        ema.module.load_state_dict(state["ema"])
        step = ema.steps = state["step"]
        if decoder_only:
            vae.load_state_dict(state["ema"])
        else:
            vae.load_state_dict(state["vae"])
            optimizer.load_state_dict(state["optimizer"])
            clock.spent_s = state["spent_s"]
    rng = random.Random(1000 + step)
    torch.manual_seed(1000 + step)
    clock.start()
    saved = clock.spent_s
    while (fraction := clock.fraction) < 1.0:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(peak, fraction)
        whole = decoder_only or fraction > 0.55
        pixels = _scene_pictures(rng, 6 if whole else 16, networks.IMAGE_SIZE if whole else 64)
        pixels = pixels.to(where, memory_format=torch.channels_last)
        with torch.autocast(where.type, torch.bfloat16):
            with torch.set_grad_enabled(not decoder_only):
                mean = vae.encode(pixels).latent_dist.mean
            got = vae.decode(mean + 0.05 * torch.randn_like(mean)).sample
        loss = _autoencoder_loss(got.float(), pixels) + 1e-3 * mean.float().square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        ema.update(vae)
        step += 1
        if step % 50 == 0:
            logger.info("vae step %d, %.0f%%, loss %.4f", step, fraction * 100, loss.item())
        if clock.spent_s - saved > SAVE_EVERY_S or clock.fraction >= 1.0:
            saved = clock.spent_s
            if not decoder_only:
                state = {"vae": vae.state_dict(), "optimizer": optimizer.state_dict(), "spent_s": saved, "step": step}
            _save(path, {**state, "ema": ema.module.state_dict()})
            _show_vae(ema.module, folder / "vae.png")


@torch.no_grad()
def _show_vae(vae: Any, path: Path) -> None:
    pixels = _scene_pictures(random.Random(7), 8, networks.IMAGE_SIZE).to(device())
    with torch.autocast(device().type, torch.bfloat16):
        got = vae.decode(vae.encode(pixels).latent_dist.mean).sample.float().clamp(-1, 1)
    psnr = 10 * math.log10(4 / (got - pixels).square().mean().item())
    logger.info("vae PSNR on 8 held-out pictures: %.1f dB", psnr)
    grid(to_images(torch.cat([pixels, got])), 8).save(path)


@torch.no_grad()
def cache_latents(folder: Path, count: int) -> None:
    """Encodes `count` drawn pictures into ``folder/latents.pt``: latents scaled to unit deviation, and their scenes."""
    where = device()
    vae = networks.make_vae()
    vae.load_state_dict(torch.load(folder / "vae.pt", weights_only=True)["ema"])
    vae = vae.to(where, memory_format=torch.channels_last).eval()
    rng = random.Random(2000)
    scenes = [random_scene(rng) for _ in range(count)]
    latents: list[Tensor] = []
    for start in range(0, count, 32):
        pixels = to_tensor([draw(scene, networks.IMAGE_SIZE, rng) for scene in scenes[start : start + 32]])
        with torch.autocast(where.type, torch.bfloat16):
            mean = vae.encode(pixels.to(where, memory_format=torch.channels_last)).latent_dist.mean
        latents.append(mean.float().cpu())
        if start % 3200 == 0:
            logger.info("encoded %d of %d pictures", start, count)
    stack = torch.cat(latents)
    scaling_factor = 1 / stack.std().item()
    logger.info("scaling factor %.4f, channel means %s", scaling_factor, (stack * scaling_factor).mean((0, 2, 3)))
    captions = [(scene.subject, scene.background) for scene in scenes]
    _save(
        folder / "latents.pt",
        {"latents": (stack * scaling_factor).half(), "captions": captions, "scaling_factor": scaling_factor},
    )


class Tokenizer:
    """Captions → (N, 77) CLIP token ids, padded with the end token as Stable Diffusion 1 does."""

    def __init__(self) -> None:
        self._bpe = SimpleTokenizer()
        self._known: dict[str, list[int]] = {}

    def __call__(self, captions: list[str]) -> Tensor:
        rows: list[list[int]] = []
        for text in captions:
            if text not in self._known:
                ids = [networks.START_TOKEN, *self._bpe.encode(text)[: networks.TOKENS - 2], networks.END_TOKEN]
                self._known[text] = ids + [networks.END_TOKEN] * (networks.TOKENS - len(ids))
            rows.append(self._known[text])
        return torch.tensor(rows)


def _batches(data: dict[str, Any], size: int, rng: random.Random) -> Iterator[tuple[Tensor, list[str]]]:
    """Shuffled endless batches of latents and fresh captions, one in ten captions dropped for guidance."""
    scenes = [Scene(items=(), subject=subject, background=background) for subject, background in data["captions"]]
    # A circle and a square differ by their corners alone and are the last to be told apart, so they come twice.
    alike = [index for index, scene in enumerate(scenes) if "circle" in scene.subject or "square" in scene.subject]
    order = [*range(len(scenes)), *alike]
    while True:
        rng.shuffle(order)
        for start in range(0, len(order) - size + 1, size):
            chosen = order[start : start + size]
            captions = ["" if rng.random() < 0.1 else caption(scenes[index], rng) for index in chosen]
            yield data["latents"][chosen].float(), captions


class _Guess(nn.Module):
    """UNet and text encoder as one module: the loss of their guess, in the one forward call that DDP wants."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = networks.make_unet()
        self.text = networks.make_text_encoder()

    def forward(self, noisy: Tensor, timesteps: Tensor, ids: Tensor, target: Tensor) -> Tensor:
        with torch.autocast(noisy.device.type, torch.bfloat16):
            states = self.text(ids).last_hidden_state
            got = self.unet(noisy, timesteps, states).sample
        # The plain loss on v: min-SNR weights would all but ignore the noisiest steps, and it is there that the outline
        # of a shape on a plain ground is decided.
        return F.mse_loss(got.float(), target)


def train_unet(folder: Path, minutes: float, batch: int, workers: int = 1) -> None:
    """Trains UNet and text encoder into ``folder/unet.pt`` (v-prediction, EMA), in `workers` processes.

    On a CPU one process with one thread a core is faster than threads: these networks are small, and threads spend
    their time waiting for each other.
    """
    rendezvous = (folder / "rendezvous").resolve()
    rendezvous.unlink(missing_ok=True)
    torch.multiprocessing.spawn(
        _train_unet_worker, (folder, minutes, batch // workers, workers, rendezvous.as_uri()), nprocs=workers
    )


def _train_unet_worker(rank: int, folder: Path, minutes: float, batch: int, workers: int, rendezvous: str) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if workers > 1:
        torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=workers)
    path = folder / "unet.pt"
    where = device()
    data = torch.load(folder / "latents.pt", weights_only=True, mmap=True)
    model = _Guess().to(where)
    # Explicit products run on the matrix units where fused attention for the CPU does not: 1.4 × faster here.
    if where.type == "cpu":
        model.unet.set_attn_processor(AttnProcessor())
    peak = 1.2e-3
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    ema = Ema(model, 0.9985)
    clock, step = Clock(minutes * 60), 0
    if path.exists():
        state = torch.load(path, weights_only=True)
        model.load_state_dict(state["model"])
        ema.module.load_state_dict(state["ema"])
        optimizer.load_state_dict(state["optimizer"])
        clock.spent_s, step, ema.steps = state["spent_s"], state["step"], state["step"]
    together = DistributedDataParallel(model)
    tokenize = Tokenizer()
    rng = random.Random(3000 + step * workers + rank)
    torch.manual_seed(3000 + step * workers + rank)
    alphas = DDIMScheduler(**BETAS).alphas_cumprod.to(where)
    batches = _batches(data, batch, rng)
    clock.start()
    saved, running = clock.spent_s, 0.0
    while (fraction := _agree(clock.fraction)) < 1.0:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(peak, fraction)
        latents, captions = next(batches)
        latents = latents.to(where)
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
        running += loss.item()
        if step % 50 == 0:
            logger.info("unet step %d, %.1f%%, loss %.4f", step, fraction * 100, running / 50)
            running = 0.0
        if clock.spent_s - saved > SAVE_EVERY_S or clock.fraction >= 1.0:
            saved = clock.spent_s
            _save(
                path,
                {
                    "model": model.state_dict(),
                    "ema": ema.module.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "spent_s": clock.spent_s,
                    "step": step,
                },
            )
            _show_unet(ema.module, folder, data["scaling_factor"], tokenize)
    distributed.destroy_process_group()


def _agree(fraction: float) -> float:
    """The first worker's clock, for all: they must stop at the same step."""
    said = torch.tensor([fraction], dtype=torch.float64)
    distributed.broadcast(said, src=0)
    return said.item()


@torch.no_grad()
def _show_unet(model: Any, folder: Path, scaling_factor: float, tokenize: Tokenizer) -> None:
    """Writes ``folder/samples.png``: `SAMPLE_PROMPTS` by 15 steps of DDIM at guidance 4."""
    where = device()
    vae = networks.make_vae()
    vae.load_state_dict(torch.load(folder / "vae.pt", weights_only=True)["ema"])
    vae = vae.to(where)
    scheduler = DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False)
    scheduler.set_timesteps(15)
    prompts = list(SAMPLE_PROMPTS)
    ids = tokenize(prompts + [""] * len(prompts)).to(where)
    latents = torch.randn(len(prompts), 4, 16, 16, generator=torch.Generator().manual_seed(1)).to(where)
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.autocast(where.type, torch.bfloat16))
        states = model.text(ids).last_hidden_state
        for timestep in scheduler.timesteps:
            wanted, plain = model.unet(torch.cat([latents, latents]), timestep, states).sample.float().chunk(2)
            latents = scheduler.step(plain + 4 * (wanted - plain), timestep, latents).prev_sample  # pyright: ignore
        pixels = vae.decode(latents / scaling_factor).sample
    grid(to_images(pixels.clamp(-1, 1)), 4).save(folder / "samples.png")
