"""Pictures through the engine beside the bare networks and diffusers' own pipeline: it/s, seconds and peak memory.

    .venv/bin/python benchmarks/throughput.py [--case sd15-256 …] [--rounds 3] [--steps N] [--precision P] [--compiled]
        [--json]

Every side is a process of its own, so that each has its own peak of memory, and all take turns: one picture (or batch)
a side and round, in changing order, after one that warms up. They read one diffusers folder of random weights in the
published shapes. *engine* is `EngineManager.generate`; *floor* is the text encoders once, a UNet call a step at twice
the batch and one VAE decode by the engine's own modules and attention, on inputs made beforehand; *diffusers* is its
pipeline with the same sampler and torch's fused attention; *compiled* is the same with its UNet's repeated blocks
compiled, and *engine-compiled* the engine with its setting Compile. On a card there is *engine-small* too, the engine
within little video memory (SD 1.5 in 2 GiB, SDXL in 4), which tells what that costs.

it/s count the steps alone, seconds the whole picture, both as medians; peak memory is the card's on CUDA, else the
process's. All compute in one precision: what the setting "auto" takes, or what is asked for. Without a card the default
is one case that a small machine can hold.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from webui.core.catalogue import PRECISIONS  # noqa: E402

PROMPT = "a lighthouse on a cliff at dusk"
CFG_SCALE = 7.0
SAMPLER = "DPM++ 2M"


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is drawn: the shapes of the weights, the picture's side in pixels, pictures at once, steps.

    `small_gib` is the video memory of the side that has little of it, `precision` a value of that setting.
    """

    shapes: str
    side: int
    batch: int
    steps: int
    small_gib: float
    precision: str = "auto"


CASES = {
    "sd15-256": Case(shapes="sd15", side=256, batch=1, steps=2, small_gib=2),
    "sd15-512": Case(shapes="sd15", side=512, batch=1, steps=30, small_gib=2),
    "sd15-512x8": Case(shapes="sd15", side=512, batch=8, steps=30, small_gib=2),
    "sdxl-1024": Case(shapes="sdxl", side=1024, batch=1, steps=30, small_gib=4),
}


# --- what all sides read ---------------------------------------------------------------------------------------------


def write_random_folder(folder: Path, shapes: str) -> None:
    """A diffusers folder in Stable Diffusion 1.5's or SDXL's shapes, of random fp16 weights."""
    import torch

    from webui.hardware import torchvision_operators

    torchvision_operators.declare()
    from diffusers import (
        AutoencoderKL,
        DPMSolverMultistepScheduler,
        StableDiffusionPipeline,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    xl = shapes == "sdxl"
    unet = {
        "sample_size": 128 if xl else 64,
        "block_out_channels": [320, 640, 1280] if xl else [320, 640, 1280, 1280],
        "down_block_types": ["DownBlock2D", *["CrossAttnDownBlock2D"] * 2]
        if xl
        else [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
        "up_block_types": [*["CrossAttnUpBlock2D"] * 2, "UpBlock2D"]
        if xl
        else ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
        "cross_attention_dim": 2048 if xl else 768,
        "attention_head_dim": [5, 10, 20] if xl else 8,
    }
    if xl:
        unet |= {
            "transformer_layers_per_block": [1, 2, 10],
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        }
    vae = {
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 2,
        "sample_size": 1024 if xl else 512,
        "scaling_factor": 0.13025 if xl else 0.18215,
    }
    small = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    large = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
    with torch.device("meta"):
        parts: dict[str, Any] = {
            "unet": UNet2DConditionModel(**unet),
            "vae": AutoencoderKL(**vae),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**small, projection_dim=768)),
        }
        if xl:
            parts["text_encoder_2"] = CLIPTextModelWithProjection(
                CLIPTextConfig(**large, projection_dim=1280, hidden_act="gelu")
            )
    for name, module in parts.items():
        module.half().to_empty(device="cpu")
        torch.manual_seed(len(name))
        for weight in module.parameters():
            # One-dimensional ones are biases and norms; a spread that keeps the states of deep networks finite.
            weight.data.fill_(0.01) if weight.ndim < 2 else weight.data.normal_(0, 0.02)
        for buffer_name, buffer in module.named_buffers():
            if "position_ids" in buffer_name:
                buffer.copy_(torch.arange(buffer.shape[-1]).expand_as(buffer))
    scheduler = DPMSolverMultistepScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
    )
    tokenizers: dict[str, Any] = {"tokenizer": _tokenizer(folder)}
    if xl:
        made: Any = StableDiffusionXLPipeline(
            **parts, **tokenizers, tokenizer_2=tokenizers["tokenizer"], scheduler=scheduler
        )
    else:
        made = StableDiffusionPipeline(
            **parts,
            **tokenizers,
            scheduler=scheduler,
            safety_checker=None,  # pyright: ignore[reportArgumentType] # none is allowed
            feature_extractor=None,  # pyright: ignore[reportArgumentType]
            requires_safety_checker=False,
        )
    made.save_pretrained(folder)


def _tokenizer(folder: Path) -> Any:
    """A tokenizer of three words: the weights are random, so it does not matter which words are meant."""
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    return CLIPTokenizer(vocab={"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2}, merges=[], model_max_length=77)


# --- the sides: each makes a function that draws once and returns (seconds of the steps, seconds of all) --------------

Draw = Callable[[], tuple[float, float]]


def _wait(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def engine_side(folder: Path, case: Case, **settings: Any) -> Draw:
    """The engine, without previews, under `settings`."""
    from webui.checkpoints.scan import CheckpointFolder
    from webui.core.events import Finished
    from webui.core.ports import Control
    from webui.core.requests import Txt2Img
    from webui.engine.manager import EngineManager
    from webui.settings.schema import Settings

    settings["precision"] = case.precision
    engine = EngineManager(CheckpointFolder(folder), lambda: Settings(**settings))
    request = Txt2Img(
        prompt=PROMPT, checkpoint=case.shapes, sampler=SAMPLER, steps=case.steps, width=case.side, height=case.side,
        cfg_scale=CFG_SCALE, batch_size=case.batch, seed=1,
    )  # fmt: skip

    def draw() -> tuple[float, float]:
        begin = time.perf_counter()
        steps_s = 0.0
        for event in engine.generate(dataclasses.replace(request, prompt=f"{PROMPT} {begin}"), control=Control()):
            if isinstance(event, Finished):
                steps_s = event.seconds["denoise"]
        return steps_s, time.perf_counter() - begin

    return draw


def floor_side(folder: Path, case: Case) -> Draw:
    """The engine's modules, in the environment that it prepares for them, called and nothing else."""
    from webui.hardware.environment import prepare_environment

    prepare_environment()
    import torch

    from webui.checkpoints.hash import ModelHashes
    from webui.checkpoints.scan import CheckpointFolder
    from webui.core.requests import Txt2Img
    from webui.engine.workshop import Workshop
    from webui.settings.schema import Settings

    workshop = Workshop(CheckpointFolder(folder), lambda: Settings(precision=case.precision), ModelHashes())
    request = Txt2Img(checkpoint=case.shapes, width=case.side, height=case.side, batch_size=case.batch)

    @torch.inference_mode()
    def draw() -> tuple[float, float]:
        with workshop.bench(request) as bench:
            unet, vae, device = bench.checkpoint.unet, bench.checkpoint.vae, bench.device
            dtype = unet.dtype
            latents = torch.randn(2 * case.batch, 4, case.side // 8, case.side // 8, device=device, dtype=dtype)
            width = unet.config["cross_attention_dim"]
            states = torch.randn(2 * case.batch, 77, width, device=device, dtype=dtype)
            added: dict[str, Any] = {}
            if case.shapes == "sdxl":
                pooled = torch.randn(2 * case.batch, 1280, device=device, dtype=dtype)
                added = {"text_embeds": pooled, "time_ids": torch.zeros(2 * case.batch, 6, device=device, dtype=dtype)}
            tokens = torch.ones(2, 77, dtype=torch.long, device=device)
            timesteps = torch.linspace(999, 0, case.steps, device=device).split(1)
            _wait(device)
            begin = time.perf_counter()
            for encoder in bench.checkpoint.text_encoders:
                encoder.module(input_ids=tokens)
            _wait(device)
            start = time.perf_counter()
            for timestep in timesteps:
                unet(latents, timestep, states, added_cond_kwargs=added, return_dict=False)
            _wait(device)
            steps_s = time.perf_counter() - start
            for row in latents[: case.batch].split(1):
                vae.decode(row, return_dict=False)
            _wait(device)
            return steps_s, time.perf_counter() - begin

    return draw


def diffusers_side(folder: Path, case: Case, *, compiled: bool = False) -> Draw:
    """The pipeline of diffusers, as its documentation says to use it."""
    import torch

    from webui.hardware import torchvision_operators
    from webui.hardware.device import choose_device, choose_dtype

    torchvision_operators.declare()
    from diffusers import DiffusionPipeline
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    device = choose_device()
    pipeline: Any = DiffusionPipeline.from_pretrained(
        str(folder / "Stable-diffusion" / case.shapes),
        dtype=choose_dtype(device, case.precision),
        local_files_only=True,
    ).to(device)
    pipeline.set_progress_bar_config(disable=True)
    if compiled:
        pipeline.unet.to(memory_format=torch.channels_last)
        pipeline.unet.compile_repeated_blocks(fullgraph=True)
    marks: dict[str, float] = {}

    def marked(function: Callable[..., Any], name: str, *, after: bool) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            made = function(*arguments, **named) if after else None
            _wait(device)
            marks[name] = time.perf_counter()
            return made if after else function(*arguments, **named)

        return run

    pipeline.encode_prompt = marked(pipeline.encode_prompt, "start", after=True)
    pipeline.vae.decode = marked(pipeline.vae.decode, "end", after=False)

    def draw() -> tuple[float, float]:
        begin = time.perf_counter()
        pipeline(
            prompt=PROMPT, num_inference_steps=case.steps, guidance_scale=CFG_SCALE, width=case.side, height=case.side,
            num_images_per_prompt=case.batch, generator=torch.Generator().manual_seed(1),
        )  # fmt: skip
        _wait(device)
        return marks["end"] - marks["start"], time.perf_counter() - begin

    return draw


SIDES: dict[str, Callable[[Path, Case], Draw]] = {
    "engine": engine_side,
    "engine-compiled": lambda folder, case: engine_side(folder, case, compile=True),
    "engine-small": lambda folder, case: engine_side(folder, case, video_memory_gib=case.small_gib),
    "floor": floor_side,
    "diffusers": diffusers_side,
    "compiled": lambda folder, case: diffusers_side(folder, case, compiled=True),
}


# --- processes -------------------------------------------------------------------------------------------------------


def work(side: str, folder: Path, case: Case) -> None:
    """A side's process: draws once for each line that comes in, and answers with a line of JSON."""
    logging.disable(logging.WARNING)
    draw: Draw | None = None
    for _ in sys.stdin:
        draw = draw or SIDES[side](folder, case)
        steps_s, all_s = draw()
        print(json.dumps({"steps_s": steps_s, "all_s": all_s, "peak_mb": peak_mb()}), flush=True)


def peak_mb() -> float:
    """The most memory that this process has held: of the card on CUDA, else resident (Linux)."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved() / 2**20
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024


class Side:
    """One side's process."""

    def __init__(self, name: str, folder: Path, case_name: str, case: Case) -> None:
        self.name = name
        command = [sys.executable, __file__, "--worker", name, "--folder", str(folder), "--case", case_name]
        self._process = subprocess.Popen(
            [*command, "--steps", str(case.steps), "--precision", case.precision],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.draws: list[dict[str, float]] = []

    def draw(self) -> dict[str, float]:
        """Has it draw once; raises RuntimeError if it ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("draw\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the side {self.name!r} ended; what it said stands above")
        return json.loads(answer)

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()


def measure(folder: Path, case_name: str, case: Case, names: list[str], rounds: int) -> dict[str, Any]:
    """The medians of all sides in one case."""
    place = folder / "Stable-diffusion" / case.shapes
    if not place.exists():
        write_random_folder(place, case.shapes)
    sides = [Side(name, folder, case_name, case) for name in names]
    try:
        for number in range(rounds + 1):
            for side in sides[number % len(sides) :] + sides[: number % len(sides)]:
                drawn = side.draw()
                if number:  # the first one warms up
                    side.draws.append(drawn)
    finally:
        for side in sides:
            side.close()
    rows: dict[str, Any] = {"case": case_name, "steps": case.steps, "batch": case.batch, "precision": case.precision}
    for side in sides:
        steps_s = statistics.median(draw["steps_s"] for draw in side.draws)
        rows[side.name] = {
            "it_per_s": round(case.steps / steps_s, 3),
            "seconds": round(statistics.median(draw["all_s"] for draw in side.draws), 3),
            "peak_mb": round(max(draw["peak_mb"] for draw in side.draws)),
        }
    ours = rows["engine"]
    rows["speed_over"] = {
        side.name: round(ours["it_per_s"] / rows[side.name]["it_per_s"], 4) for side in sides if side.name != "engine"
    }
    return rows


def main() -> None:
    """Reads the options, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", choices=CASES, help="may be repeated")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=0, help="instead of the case's own")
    parser.add_argument("--precision", default="auto", choices=PRECISIONS)
    parser.add_argument("--side", action="append", choices=SIDES, help="beside the engine")
    parser.add_argument("--compiled", action="store_true", help="with what is compiled, which warms up for minutes")
    parser.add_argument("--folder", type=Path, help="where to keep the weights (default: a temporary folder)")
    parser.add_argument("--worker", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="print one line of JSON a case at the end")
    options = parser.parse_args()

    def case_of(name: str) -> Case:
        return dataclasses.replace(CASES[name], steps=options.steps or CASES[name].steps, precision=options.precision)

    if options.worker:
        work(options.worker, options.folder, case_of(options.case[0]))
        return
    import torch

    default = ["sd15-512", "sd15-512x8", "sdxl-1024"] if torch.cuda.is_available() else ["sd15-256"]
    small = ["engine-small"] if torch.cuda.is_available() else []
    compiled = ["compiled", "engine-compiled"] if options.compiled else []
    beside = options.side or ["floor", "diffusers", *small, *compiled]
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        for name in options.case or default:
            names = ["engine", *(side for side in beside if side != "engine")]
            result = measure(options.folder or Path(temporary), name, case_of(name), names, options.rounds)
            results.append(result)
            print(f"{name}, {result['steps']} steps, batch {result['batch']}, precision {result['precision']}")
            print(f"{'side':<16}{'it/s':>9}{'seconds':>10}{'peak MB':>10}{'engine over it':>17}")
            for side in names:
                row = result[side]
                over = result["speed_over"].get(side)
                shown = "" if over is None else f"{over:.3f}"
                print(f"{side:<16}{row['it_per_s']:>9.2f}{row['seconds']:>10.2f}{row['peak_mb']:>10}{shown:>17}")
    if options.json:
        for result in results:
            print(json.dumps(result))


if __name__ == "__main__":
    main()
