"""How fast checkpoints are loaded and swapped, and whether swapping leaves memory behind.

    .venv/bin/python benchmarks/swap.py [--rounds 3] [--swaps 50] [--folder PATH] [--json]

Cold: a file of random weights in Stable Diffusion 1.5's shapes and layout, fp16, in the page cache, is loaded through
`Workshop.bench`, which is what a job waits for. Beside it, in the same rounds, the floor (the file's bytes read into
memory, and each tensor cast from there to what the CPU computes in) and diffusers' `from_single_file` with a local
configuration. Everybody's modules are let go before the next one's turn. Warm: two such checkpoints, both in memory, in
turn. Growth: resident memory from the 2nd to the last of many swaps between two smaller checkpoints (a quarter of the
widths), none of which may stay, so that every swap loads one and lets one go. Hashes are made meanwhile, as in a job,
and waited for outside the clock. It needs 3 GB on disk below --folder and about 14 GB of free memory.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402  # after the path, so that the file runs from any folder

from tools.builtin_model.export import metadata, original_layout  # noqa: E402
from webui.checkpoints.hash import ModelHashes  # noqa: E402
from webui.checkpoints.scan import CheckpointFolder  # noqa: E402
from webui.core.requests import Txt2Img  # noqa: E402
from webui.engine.workshop import Workshop  # noqa: E402
from webui.hardware import torchvision_operators  # noqa: E402
from webui.hardware.device import choose_device, choose_dtype  # noqa: E402
from webui.hardware.memory import give_back  # noqa: E402
from webui.settings.schema import Settings  # noqa: E402

SCHEDULE = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
RANDOM_NUMBERS = 2**20
KEEPS_NONE = Settings(model_memory_gib=1e-9)
KEEPS_ALL = Settings(model_memory_gib=64)


def configuration(divisor: int) -> dict[str, dict[str, Any]]:
    """Stable Diffusion 1.5's networks, their widths divided by 1 or 4."""
    widths = [320 // divisor, 640 // divisor, 1280 // divisor, 1280 // divisor]
    unet = {
        "sample_size": 64,
        "block_out_channels": widths,
        "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
        "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
        "layers_per_block": 2,
        "cross_attention_dim": 768 // divisor,
        "attention_head_dim": 8 // divisor,
        "norm_num_groups": 32 // divisor,
    }
    vae = {
        "block_out_channels": [128 // divisor, 256 // divisor, 512 // divisor, 512 // divisor],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "latent_channels": 4,
        "layers_per_block": 2,
        "norm_num_groups": 32 // divisor,
        "sample_size": 512,
        "scaling_factor": 0.18215,
    }
    text = {
        "hidden_size": 768 // divisor,
        "intermediate_size": 3072 // divisor,
        "num_hidden_layers": 12,
        "num_attention_heads": 12 // divisor,
        "max_position_embeddings": 77,
        "vocab_size": 49408,
        "hidden_act": "quick_gelu",
        "bos_token_id": 49406,
        "eos_token_id": 49407,
        "projection_dim": 768 // divisor,
    }
    return {"unet": unet, "vae": vae, "text_encoder": text, "scheduler": SCHEDULE}


def write_checkpoint(path: Path, config: dict[str, dict[str, Any]], *, published: bool) -> None:
    """A checkpoint of random weights; one of other than the `published` sizes says so in its metadata."""
    torchvision_operators.declare()
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from safetensors.torch import save_file
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        modules = (
            UNet2DConditionModel(**config["unet"]),
            AutoencoderKL(**config["vae"]),
            CLIPTextModel(CLIPTextConfig(**config["text_encoder"])),
        )
    numbers = (torch.randn(RANDOM_NUMBERS) * 0.02).half()  # the same ones again and again: only their count matters
    for module in modules:
        module.half().to_empty(device="cpu")
        for weight in module.parameters():
            for part in weight.data.view(-1).split(RANDOM_NUMBERS):
                part.copy_(numbers[: len(part)])
    about = {} if published else metadata(config, prediction="epsilon", side=64, title="Random")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(original_layout(*modules, config), path, about)


def write_diffusers_config(folder: Path, config: dict[str, dict[str, Any]]) -> None:
    """What `from_single_file` wants to know beside the file, without the network; the tokenizer is a small one."""
    from transformers import CLIPTokenizer

    index = {
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
    }
    files = {
        "model_index.json": index,
        "unet/config.json": {"_class_name": "UNet2DConditionModel", **config["unet"]},
        "vae/config.json": {"_class_name": "AutoencoderKL", **config["vae"]},
        "text_encoder/config.json": {"model_type": "clip_text_model", **config["text_encoder"]},
        "scheduler/scheduler_config.json": SCHEDULE,
    }
    for name, values in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(values), encoding="utf-8")
    words = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2}
    CLIPTokenizer(vocab=words, merges=[]).save_pretrained(folder / "tokenizer")


# --- the three loaders -----------------------------------------------------------------------------------------------


def read_and_cast(path: Path, dtype: torch.dtype) -> list[torch.Tensor]:
    """The floor: all bytes into memory, then every half-precision tensor to `dtype`, and nothing else."""
    data = bytearray(path.stat().st_size)
    with path.open("rb", buffering=0) as file:
        view = memoryview(data)
        read = 0
        while read < len(data):
            read += file.readinto(view[read:]) or 0
    start = 8 + struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    whole = torch.frombuffer(data, dtype=torch.uint8)
    return [
        whole[start + entry["data_offsets"][0] : start + entry["data_offsets"][1]].view(torch.float16).to(dtype)
        for entry in header.values()
        if math.prod(entry["shape"])
    ]


def through_diffusers(path: Path, config: Path, dtype: torch.dtype) -> Any:
    """The single-file loader of diffusers."""
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.from_single_file(
        str(path), config=str(config), local_files_only=True, torch_dtype=dtype, safety_checker=None
    )


def quieten_diffusers() -> None:
    """No progress bars and no advice between our lines."""
    torchvision_operators.declare()
    from diffusers.utils import logging as diffusers_logging

    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()


def seconds_of(load: Callable[[], object]) -> float:
    """How long `load` takes; what it makes is let go of afterwards, outside the clock."""
    begin = time.perf_counter()
    made = load()
    spent = time.perf_counter() - begin
    del made
    give_back(torch.device("cpu"))
    return spent


def swap_s(workshop: Workshop, name: str) -> float:
    """Seconds until the bench with that checkpoint is laid out; its hash is waited for afterwards."""
    begin = time.perf_counter()
    with workshop.bench(Txt2Img(checkpoint=name)) as bench:
        spent = time.perf_counter() - begin
        bench.model_hash()
    return spent


# --- the measurements ------------------------------------------------------------------------------------------------


def measure_cold(folder: CheckpointFolder, config: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds of each loader, one of each a round, after a round that fills caches and is not counted."""
    path, dtype = folder.path("first"), choose_dtype(choose_device())
    times: dict[str, list[float]] = {"read": [], "ours": [], "diffusers": []}
    for number in range(rounds + 1):
        workshop = Workshop(folder, lambda: KEEPS_NONE, ModelHashes())
        ours = swap_s(workshop, "first")
        del workshop
        give_back(torch.device("cpu"))
        measured = {
            "ours": ours,
            "read": seconds_of(lambda: read_and_cast(path, dtype)),
            "diffusers": seconds_of(lambda: through_diffusers(path, config, dtype)),
        }
        for name, seconds in measured.items() if number else ():
            times[name].append(seconds)
    return times


def measure_warm(folder: CheckpointFolder, rounds: int) -> float:
    """The slowest of the swaps back and forth between two checkpoints that are both in memory."""
    workshop = Workshop(folder, lambda: KEEPS_ALL, ModelHashes())
    for name in ("first", "second"):
        swap_s(workshop, name)
    return max(swap_s(workshop, name) for name in ("first", "second") * rounds)


def measure_growth(folder: CheckpointFolder, swaps: int) -> tuple[float, list[int]]:
    """Percent of resident memory from the 2nd swap to the last, and its bytes after each."""
    workshop = Workshop(folder, lambda: KEEPS_NONE, ModelHashes())
    sizes: list[int] = []
    for number in range(swaps):
        swap_s(workshop, ("third", "fourth")[number % 2])
        sizes.append(resident_bytes())
    return (sizes[-1] / sizes[1] - 1) * 100, sizes


def resident_bytes() -> int:
    """What this process has in main memory now (Linux)."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def prepare(place: Path) -> tuple[CheckpointFolder, Path]:
    """Two pairs of checkpoints (each the same file under two names), and the configuration for diffusers."""
    checkpoints = place / "models" / "Stable-diffusion"
    for divisor, (name, other) in ((1, ("first", "second")), (4, ("third", "fourth"))):
        write_checkpoint(checkpoints / f"{name}.safetensors", configuration(divisor), published=divisor == 1)
        (checkpoints / f"{other}.safetensors").hardlink_to(checkpoints / f"{name}.safetensors")
    write_diffusers_config(place / "config", configuration(1))
    give_back(torch.device("cpu"))
    return CheckpointFolder(place / "models"), place / "config"


def main() -> None:
    """Prints a table, or with --json one last line of JSON."""
    parser = argparse.ArgumentParser(description="Loading and swapping checkpoints, beside diffusers.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--swaps", type=int, default=50)
    parser.add_argument("--folder", type=Path, help="where to write the files (default: a temporary folder)")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.folder) as name:
        quieten_diffusers()
        folder, config = prepare(Path(name))
        growth_percent, sizes = measure_growth(folder, chosen.swaps)
        cold = measure_cold(folder, config, chosen.rounds)
        warm_s = measure_warm(folder, chosen.rounds)
    medians = {name: statistics.median(seconds) for name, seconds in cold.items()}
    for name, seconds in cold.items():
        print(f"cold, {name:9}  {medians[name]:7.2f} s   ({', '.join(f'{value:.2f}' for value in seconds)})")
    print(f"warm swap        {warm_s:7.4f} s at most")
    print(f"memory           {sizes[1] >> 20} MB after 2 swaps, {sizes[-1] >> 20} MB after {len(sizes)}")
    result = {
        "cold_over_read": medians["ours"] / medians["read"],
        "cold_over_diffusers": medians["ours"] / medians["diffusers"],
        "warm_s": warm_s,
        "growth_percent": growth_percent,
    }
    for name, value in result.items():
        print(f"{name:20} {value:.3f}")
    if chosen.json:
        print(json.dumps({name: round(value, 4) for name, value in result.items()}))


if __name__ == "__main__":
    main()
