"""What each sampler costs beside the network, how fast its error falls, and what it paints.

    .venv/bin/python benchmarks/samplers.py [--json]                 cost per step over the bare UNet; the error plot
    .venv/bin/python benchmarks/samplers.py --sheet docs/samplers.jpg --prompt "…"
                                                                     one picture for each sampler and schedule type

Costs: the time of a sampler's walk, under guidance, on a small UNet with random weights, over the time inside the UNet
itself on that walk (a batch of two). Both are processor time on one thread, so that other work on the machine hardly
tells; the median of the rounds is printed. The plot shows the largest error against network calls on a
mixture of Gaussians, whose exact denoiser is known, for samplers without noise (those of the stochastic equation with
eta 0, where some of them are the same rule); the truth is Heun's rule in 4,000 steps.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402  # after the path, so that the file runs from any folder
from PIL import Image, ImageDraw  # noqa: E402
from torch import Tensor  # noqa: E402

from webui.checkpoints.scan import CheckpointFolder  # noqa: E402
from webui.core.catalogue import SAMPLERS as NAMES  # noqa: E402
from webui.core.catalogue import SCHEDULE_TYPES  # noqa: E402
from webui.core.events import ImageReady  # noqa: E402
from webui.core.ports import Control  # noqa: E402
from webui.core.requests import Guidance, SamplerOptions, ScheduleOptions, Txt2Img  # noqa: E402
from webui.engine.brownian import BrownianNoise  # noqa: E402
from webui.engine.conditioning.words import Conditioning, PromptPlan, Until  # noqa: E402
from webui.engine.denoiser import NetworkDenoiser  # noqa: E402
from webui.engine.guidance import Guided  # noqa: E402
from webui.engine.manager import EngineManager  # noqa: E402
from webui.engine.samplers import SAMPLERS, NoiseSource, Sampler  # noqa: E402
from webui.engine.schedules import make_sigmas, stable_diffusion_table  # noqa: E402
from webui.hardware import torchvision_operators  # noqa: E402
from webui.settings.schema import Settings  # noqa: E402

CPU = torch.device("cpu")
SIDE = 32
TEXT = (77, 64)
UNET = {
    "block_out_channels": [64, 128],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": 1,
    "cross_attention_dim": TEXT[1],
    "attention_head_dim": 8,
    "norm_num_groups": 8,
}
TRUTH_STEPS = 4000
COUNTS = (4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)


def levels(sampler: Sampler, schedule_type: str, steps: int) -> list[float]:
    """The sampler's noise levels on Stable Diffusion's table."""
    return make_sigmas(
        schedule_type,
        stable_diffusion_table(),
        steps,
        ScheduleOptions(),
        automatic=sampler.automatic,
        discard_next_to_last=sampler.discards_next_to_last,
    )


# ---- cost ----------------------------------------------------------------------------------------------------------


def noise_for(sampler: Sampler, sigmas: Sequence[float], shape: tuple[int, ...]) -> NoiseSource:
    """Fresh noise, or a Brownian path where the sampler takes one."""
    if not sampler.brownian:
        return lambda _sigma, _sigma_next: torch.randn(1, *shape)

    def draw(seed: int) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    return BrownianNoise([1], draw, sigma_min=sigmas[-2], sigma_max=sigmas[0], device=CPU)


class Timed(torch.nn.Module):
    """A network that counts its calls and the processor time that they take."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self._network = network
        self.calls = 0
        self.seconds = 0.0

    def forward(self, *arguments: object, **named: object) -> object:
        """The network's own answer."""
        begin = time.process_time()
        answer = self._network(*arguments, **named)
        self.seconds += time.process_time() - begin
        self.calls += 1
        return answer


@torch.inference_mode()
def costs(names: Sequence[str], steps: int, rounds: int) -> Iterator[tuple[str, float, float]]:
    """For each of `names` its network calls a step, and the median over `rounds` of its time over the network's."""
    torchvision_operators.declare()
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    torch.set_num_threads(1)
    torch.manual_seed(0)
    unet = UNet2DConditionModel(sample_size=SIDE, in_channels=4, out_channels=4, **UNET).eval()
    texts = [Conditioning(states=torch.randn(1, *TEXT)) for _ in range(2)]
    plan = PromptPlan(prompts=(((Until(0, texts[0]),), 1.0),), negative=(Until(0, texts[1]),))
    for name in names:
        sampler = SAMPLERS[name]
        sigmas = levels(sampler, "Automatic", steps)
        ratios = []
        for number in range(-1, rounds):  # the first round warms up
            timed = Timed(unet)
            predict = Guided(timed, plan, cfg_scale=sampler.scale(7.0), guidance=Guidance(), evaluations=steps)
            denoiser = NetworkDenoiser(
                predict, "epsilon", timestep=stable_diffusion_table().timestep, sigmas=sigmas, device=CPU
            )
            x, noise = torch.randn(1, 4, SIDE, SIDE) * sigmas[0], noise_for(sampler, sigmas, (4, SIDE, SIDE))
            begin = time.process_time()
            for _ in sampler.run(denoiser, x, sigmas, noise, SamplerOptions()):
                pass
            if number >= 0:
                ratios.append((time.process_time() - begin) / timed.seconds)
        yield name, timed.calls / steps, statistics.median(ratios)


# ---- error ---------------------------------------------------------------------------------------------------------


class Mixture:
    """The exact denoiser of five Gaussians in four dimensions; counts its calls."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(11)
        self._centres = torch.randn(5, 4, generator=generator, dtype=torch.float64)
        self.calls = 0

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """`x` (N, 4) → the mean of the clean values that it may come from."""
        self.calls += 1
        variance = 0.3**2 + sigma**2
        away = x[:, None] - self._centres
        weights = torch.softmax(-(away**2).sum(2) / (2 * variance), dim=1)
        return (weights[:, :, None] * (self._centres + away * (0.3**2 / variance))).sum(1)

    def both(self, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """The same for both prompts."""
        denoised = self(x, sigma)
        return denoised, denoised


def errors() -> dict[str, list[tuple[int, float]]]:
    """For each sampler that needs no noise: (network calls, largest error at the last sigma above 0)."""
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def end(name: str, steps: int) -> tuple[int, Tensor]:
        mixture = Mixture()
        sigmas = make_sigmas("Karras", stable_diffusion_table(), steps + 1, ScheduleOptions(), automatic="")[:-1]
        walked = list(SAMPLERS[name].run(mixture, x * sigmas[0], sigmas, _no_noise, SamplerOptions(eta=0.0)))
        return mixture.calls, walked[-1].x

    _, truth = end("Heun", TRUTH_STEPS)
    found: dict[str, list[tuple[int, float]]] = {}
    for name in NAMES:
        if name in ("DPM fast", "DPM adaptive", "Restart", "LCM", "TCD", "DDPM"):  # other levels, or noise
            continue
        runs = [end(name, steps) for steps in COUNTS]
        found[name] = [(calls, float((x - truth).abs().max())) for calls, x in runs]
    return found


def _no_noise(_sigma: float, _sigma_next: float) -> Tensor:
    raise RuntimeError("with eta 0 these samplers draw nothing")


def plot(curves: dict[str, list[tuple[int, float]]], path: Path) -> None:
    """Both axes logarithmic; a colour and a line of the legend for each sampler."""
    width, height, left, bottom, right = 1200, 800, 90, 60, 260
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    points = [point for curve in curves.values() for point in curve if point[1] > 0]
    xs, ys = [math.log10(calls) for calls, _ in points], [math.log10(error) for _, error in points]
    x_low, x_high, y_low, y_high = min(xs), max(xs), math.floor(min(ys)), math.ceil(max(ys))

    def place(calls: float, error: float) -> tuple[float, float]:
        across = (math.log10(calls) - x_low) / (x_high - x_low)
        up = (math.log10(error) - y_low) / (y_high - y_low)
        return left + across * (width - left - right), height - bottom - up * (height - bottom - 20)

    for power in range(y_low, y_high + 1):
        y = place(10**x_low, 10**power)[1]
        draw.line([(left, y), (width - right, y)], fill="#dddddd")
        draw.text((20, y - 8), f"1e{power}", fill="black", font_size=16)
    for calls in COUNTS:
        draw.text((place(calls, 10**y_low)[0] - 8, height - bottom + 8), str(calls), fill="black", font_size=12)
    draw.text(
        (left, height - 26),
        "network calls (error of the worst of 256 values, Karras' levels)",
        fill="black",
        font_size=16,
    )
    for number, (name, curve) in enumerate(curves.items()):
        colour = f"hsl({number * 360 // len(curves)}, {90 if number % 2 else 60}%, {38 if number % 3 else 52}%)"
        draw.line([place(*point) for point in curve if point[1] > 0], fill=colour, width=3)
        y = 24 + number * 24
        draw.line([(width - right + 20, y + 8), (width - right + 50, y + 8)], fill=colour, width=4)
        draw.text((width - right + 60, y), name, fill="black", font_size=16)
    image.save(path)


# ---- contact sheet -------------------------------------------------------------------------------------------------


def sheet(path: Path, *, models: Path, model: str, prompt: str, steps: int, size: int, thumbnail: int) -> None:
    """One picture for each sampler (row) and schedule type (column), of one seed."""
    engine = EngineManager(CheckpointFolder(models), Settings)
    label, top = 190, 30
    whole = Image.new("RGB", (label + thumbnail * len(SCHEDULE_TYPES), top + thumbnail * len(NAMES)), "white")
    draw = ImageDraw.Draw(whole)
    for column, schedule_type in enumerate(SCHEDULE_TYPES):
        words = schedule_type.replace("Align Your Steps", "AYS")
        draw.text((label + column * thumbnail + 4, 8), words, fill="black", font_size=13)
    for row, sampler in enumerate(NAMES):
        draw.text((8, top + row * thumbnail + thumbnail // 2 - 8), sampler, fill="black", font_size=15)
        for column, schedule_type in enumerate(SCHEDULE_TYPES):
            request = Txt2Img(
                prompt=prompt, checkpoint=model, sampler=sampler, schedule_type=schedule_type, steps=steps, seed=1,
                width=size, height=size,
            )  # fmt: skip
            for event in engine.generate(request, control=Control()):
                if isinstance(event, ImageReady):
                    small = event.image.resize((thumbnail - 2, thumbnail - 2), Image.Resampling.LANCZOS)
                    whole.paste(small, (label + column * thumbnail, top + row * thumbnail))
        print(sampler)
    whole.save(path, quality=88)


def main() -> None:
    """Reads the options; measures and plots, or paints the sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samplers", nargs="+", default=NAMES, metavar="NAME", help="those to time; all if left out")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--plot", type=Path, default=Path("samplers-error.png"), help="where the error plot goes")
    parser.add_argument("--json", action="store_true", help="print one line of JSON in place of the table")
    parser.add_argument("--sheet", type=Path, help="where the contact sheet goes; then nothing is measured")
    parser.add_argument("--models", type=Path, default=ROOT / "models", help="the models folder, for the sheet")
    parser.add_argument("--model", default="", help="the checkpoint's name, for the sheet; the default one if left out")
    parser.add_argument("--prompt", default="a red circle on a blue background", help="for the sheet")
    parser.add_argument(
        "--size", type=int, default=256, help="width and height of the sheet's pictures, before resizing"
    )
    parser.add_argument("--thumbnail", type=int, default=96, help="their width and height on the sheet")
    options = parser.parse_args()
    if options.sheet:
        sheet(
            options.sheet,
            models=options.models,
            model=options.model,
            prompt=options.prompt,
            steps=options.steps,
            size=options.size,
            thumbnail=options.thumbnail,
        )
        return
    if not options.json:
        print(f"{'sampler':<20}{'calls a step':>14}{'time over the UNet':>24}")
    rows: dict[str, dict[str, float]] = {}
    for name, calls, ratio in costs(options.samplers, options.steps, options.rounds):
        rows[name] = {"calls_a_step": round(calls, 3), "time_over_the_unet": round(ratio, 4)}
        if not options.json:
            print(f"{name:<20}{calls:>14.2f}{ratio:>24.3f}", flush=True)
    curves = errors()
    plot(curves, options.plot)
    if options.json:
        print(json.dumps({"steps": options.steps, "costs": rows, "errors": curves}))
    else:
        print(f"The errors are drawn in {options.plot}.")


if __name__ == "__main__":
    main()
