"""What this machine is to Atelier: device, kernels, precision, plans of memory, versions, folders, and what would help.

`examine` looks and changes nothing but the file of attention choices; `as_text` makes a table of it. Every value is a
string, a number or a list of strings, so that the same report is JSON.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from webui.core.errors import UserError
from webui.core.geometry import Size
from webui.core.paths import Folders
from webui.engine.bench import VAE_TILE
from webui.engine.card import GIB
from webui.engine.plan import NETWORKS, Bound, all_kept_bytes, in_words, needs_of, needs_tiles, plan
from webui.engine.workshop import LATENT_PIXELS
from webui.hardware import device as devices
from webui.hardware.attention.remembered import Choice, RememberedChoices, installed_versions
from webui.hardware.attention.selector import AUTOMATIC, AttentionSelector
from webui.hardware.compilation import why_not as why_not_compiled
from webui.hardware.layout import choose_layout
from webui.hardware.low_bits import FORMATS, FULL
from webui.hardware.low_bits import why_not as why_not_packed
from webui.hardware.memory import free_bytes, free_ram_bytes, limit
from webui.settings.schema import Settings

Report = dict[str, dict[str, Any]]

_PACKAGES = (
    "torch",
    "torchvision",
    "diffusers",
    "transformers",
    "safetensors",
    "spandrel",
    "gradio",
    "xformers",
    "triton",
    "flash-attn",
    "sageattention",
)
_NVIDIA = Path("/proc/driver/nvidia/version")
_LITTLE_DISK_GIB = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A family at its own size: millions of weights of each component, and the widths of its UNet's heads."""

    name: str
    size: Size
    millions: Mapping[str, float]
    heads: tuple[int, ...]


EXAMPLES = (
    Example(
        name="SD 1.5",
        size=Size(512, 512),
        millions={"text_encoder_1": 123.1, "unet": 859.5, "vae": 83.7},
        heads=(40, 80, 160),
    ),
    Example(
        name="SDXL",
        size=Size(1024, 1024),
        millions={"text_encoder_1": 123.1, "text_encoder_2": 694.7, "unet": 2567.5, "vae": 83.7},
        heads=(64,),
    ),
)


def examine(folders: Folders, settings: Settings, *, nvidia: Path = _NVIDIA) -> Report:
    """The report, section by section. `nvidia` is the file in which Linux's driver says its version."""
    device = devices.choose_device()
    refused = devices.why_not(settings.precision, device)
    precision = devices.AUTOMATIC if refused else settings.precision
    dtype = devices.choose_dtype(device, precision)
    limit(device, int(settings.video_memory_gib * GIB))
    remembered = RememberedChoices(folders.attention_choices)
    selector = AttentionSelector(remembered)
    return {
        "Device": _device(device),
        "Precision": {
            **({"setting": refused} if refused else {}),
            **_precision(device, dtype, precision),
            "the network's weights": why_not_packed(settings.weights, device) or settings.weights,
        },
        **{
            f"Attention for {each.name} at {each.size}": _attention(selector, device, dtype, each, settings)
            for each in EXAMPLES
        },
        "Memory plan": {f"{each.name} at {each.size}": _plan(device, dtype, each, settings) for each in EXAMPLES},
        "Speed": _speed(device, dtype, settings, remembered),
        "Versions": _versions(),
        "Folders": dict(_folders(folders)),
        "To be faster": {str(number): line for number, line in enumerate(_advice(device, nvidia), start=1)},
    }


def as_text(report: Report) -> str:
    """The report as a small table: a line a value, beneath its section's title."""
    width = max(len(name) for section in report.values() for name in section)
    lines: list[str] = []
    for title, section in report.items():
        lines += ["", title] if lines else [title]
        lines += [f"  {name:<{width}}  {value}" for name, value in section.items()] or ["  nothing to say"]
    return "\n".join(lines)


def _device(device: torch.device) -> dict[str, Any]:
    found = {"computes on": devices.describe(device)}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found["video memory"] = f"{_gib(free_bytes(device))} free of {_gib(properties.total_memory)}"
        found["architecture"] = f"sm_{properties.major}{properties.minor}, built for CUDA {torch.version.cuda}"
        found["driver"] = installed_versions().get("driver", "it does not say its version")
        if torch.cuda.device_count() > 1:
            found["beside it, unused"] = ", ".join(
                torch.cuda.get_device_name(number) for number in range(1, torch.cuda.device_count())
            )
    found["processor"] = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads used"
    found["main memory"] = f"{_gib(free_ram_bytes())} free"
    return found


def _precision(device: torch.device, dtype: torch.dtype, precision: str) -> dict[str, str]:
    wider = devices.wider_dtype(dtype, device)
    told = f"; a network that overflows goes on in {_name(wider)}" if wider else ""
    if device.type == "cpu" and dtype == torch.float32 and precision == devices.AUTOMATIC:
        told = "; this processor does not multiply in bfloat16, which would be faster"
    return {
        "checkpoints": _name(dtype) + told,
        "pipelines": _name(devices.choose_pipeline_dtype(device, precision)),
        "upscalers": _name(devices.choose_picture_dtype(device, precision)),
    }


def _attention(
    selector: AttentionSelector, device: torch.device, dtype: torch.dtype, example: Example, settings: Settings
) -> dict[str, str]:
    length = example.size.area // LATENT_PIXELS**2
    verdicts = selector.verdicts(device, dtype, example.heads, length=length)
    if settings.attention == AUTOMATIC:
        return verdicts
    try:
        selector.select(device, dtype, example.heads, length=length, override=settings.attention)
    except UserError as error:
        return {"setting": str(error), **verdicts}
    return {"setting": f"{settings.attention}, whatever is fastest", **verdicts}


def _plan(device: torch.device, dtype: torch.dtype, example: Example, settings: Settings) -> str:
    """What stays where, with what is free now, for one picture of the example's own size."""
    pixels = example.size.area
    weights = {
        name: int(millions * 1e6 * _bytes_per_weight(name, dtype, settings))
        for name, millions in example.millions.items()
    }
    needs = needs_of(weights, pixels=pixels, batch_size=1)
    free = free_bytes(device)
    wanted = f"{_gib(all_kept_bytes(needs))} wanted, {_gib(free)} free"
    if device.type == "cpu":
        fits = all_kept_bytes(needs) <= free
        return f"everything in main memory, {wanted}" if fits else f"too little main memory: {wanted}"
    tiles = needs_tiles(needs["vae"], free_bytes=free)
    if tiles:
        needs = needs_of(weights, pixels=pixels, batch_size=1, vae_pixels=min(pixels, VAE_TILE**2))
    places = plan(needs, free_bytes=free, bound=Bound(settings.video_memory_use))
    return f"{in_words(places, weights)}{'; the VAE in tiles' if tiles else ''} ({wanted})"


def _speed(
    device: torch.device, dtype: torch.dtype, settings: Settings, remembered: RememberedChoices
) -> dict[str, str]:
    """What of the measures that are for speed is on, and why the others are not."""
    on_card = device.type == "cuda"
    no_card = "" if on_card else f"off: it is for NVIDIA cards, and this computes on {devices.describe(device)}"
    refused = why_not_compiled(device)
    compiling = "on" if settings.compile else "off: the setting Compile turns it on"
    full = settings.weights == FULL
    return {
        "compiled blocks": f"off: {refused}" if refused else compiling,
        "CUDA graphs": no_card
        or ("on, for networks that stay on the card" if settings.compile else "off: so is Compile"),
        "fast arithmetic": no_card
        or ("on" if settings.fast_arithmetic else "off: the setting of that name turns it on"),
        "projections in one": no_card
        or ("on, for networks that stay on the card" if full else f"off: weights are packed in {settings.weights}"),
        "previews": "on a stream of their own" if on_card else "in a thread of their own, at most a 25th of the time",
        "feature maps": _layout(choose_layout(device, dtype, remembered, compiled=settings.compile)),
    }


def _layout(choice: Choice) -> str:
    took = ", ".join(f"{name} took {seconds * 1000:.3g} ms" for name, seconds in choice.seconds.items())
    refused = ", ".join(f"not {name}: {reason}" for name, reason in choice.refused.items())
    return "; ".join(filter(None, (choice.name, took, refused)))


def _bytes_per_weight(component: str, dtype: torch.dtype, settings: Settings) -> float:
    packed = component in NETWORKS and settings.weights != FULL
    return FORMATS[settings.weights].bytes_per_weight if packed else dtype.itemsize


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def _folders(folders: Folders) -> Iterator[tuple[str, str]]:
    for name in ("models", "outputs", "data", "extensions"):
        folder: Path = getattr(folders, name)
        above = next(place for place in (folder, *folder.parents) if place.exists())
        state = "writable" if os.access(above, os.W_OK | os.X_OK) else "CANNOT BE WRITTEN"
        free_gib = shutil.disk_usage(above).free / GIB
        short = ", which is little" if free_gib < _LITTLE_DISK_GIB else ""
        missing = "" if folder.exists() else ", not there yet"
        yield name, f"{folder}: {state}{missing}, {free_gib:.0f} GiB free{short}"


def _advice(device: torch.device, nvidia: Path) -> Iterator[str]:
    """What would make this machine faster, the greatest gain first."""
    if device.type == "cpu":
        if nvidia.exists() and torch.version.cuda is None:
            yield "There is an NVIDIA card, and this torch is built without CUDA: install one that is built for it."
        elif nvidia.exists():
            yield "There is an NVIDIA card that torch cannot use: update its driver."
        else:
            yield "A graphics card would help most; here, a small size, few steps and a fast sampler do."
        return
    if device.type == "cuda" and not _is_installed("xformers"):
        yield "Install xformers (python3 launch.py --xformers): attention in less memory, often faster."
    if device.type == "cuda" and not _is_installed("flash-attn") and torch.cuda.get_device_capability(device) >= (8, 0):
        yield "flash-attn, if it can be built here, may be faster still; it is tried once it is installed."


def _is_installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
