"""What the keys of LoRA files say: which module, and which part of its change. Pure: no torch, no files.

Three spellings are in use. kohya's trainer joins the module's path with underscores, `lora_unet_…` and `lora_te_…`,
where the UNet's path is diffusers' or the original's; diffusers and PEFT write the path with dots. Underscores cannot
be split back, so every spelling is flattened to underscores and looked up among the flattened paths of the modules
that are loaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from webui.checkpoints import keymap


class Address(NamedTuple):
    """The module that a key means: a flattened path within a component.

    `component` is "unet", "te" (the first or only text encoder), "te1" or "te2", or "" where the file does not say.
    """

    component: str
    path: str


class Part(NamedTuple):
    """One tensor's place: its module, whether it changes "weight" or "bias", and its name in `kinds.Parts`."""

    address: Address
    parameter: str
    name: str


# The factors of LoHa and LoKr, whose names in files need no translation.
_FACTORS = (
    *(f"hada_{name}" for name in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")),
    *(f"lokr_{name}" for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")),
)
# Endings of keys → canonical names.
_ENDINGS = {
    **{
        f"{joint}{spelling}.weight": name
        for joint, name, spellings in (
            (".", "up", ("lora_up", "lora_B", "lora_B.default", "lora.up", "lora_linear_layer.up")),
            (".", "down", ("lora_down", "lora_A", "lora_A.default", "lora.down", "lora_linear_layer.down")),
            ("_", "up", ("lora.up",)),  # diffusers' attention processors of 2023: to_q_lora.up.weight
            ("_", "down", ("lora.down",)),
            (".", "mid", ("lora_mid",)),
            (".", "magnitude", ("lora_magnitude_vector", "lora_magnitude_vector.default")),
        )
        for spelling in spellings
    },
    ".lora_magnitude_vector": "magnitude",
    ".dora_scale": "dora_scale",
    ".alpha": "alpha",
    **{f".{name}": name for name in _FACTORS},
    ".oft_blocks": "blocks",
    ".rescale": "rescale",
    ".diff": "diff",
    ".w_norm": "diff",
    ".on_input": "on_input",
    ".weight": "outputs",  # IA3, which has no name of its own
}
_BIAS_ENDINGS = {".diff_b": "diff", ".b_norm": "diff"}
_BY_LENGTH = sorted((*_ENDINGS, *_BIAS_ENDINGS), key=len, reverse=True)

_TO_OUT = re.compile(r"\.to_out\.0$")
_KOHYA = re.compile(r"(?:lora|lycoris)_(unet|te1|te2|te)[_.](.+)")
_DOTTED = (
    ("unet.", "unet"),
    ("diffusion_model.", "unet"),
    ("text_encoder.", "te"),
    ("text_encoder_2.", "te2"),
)
_WRAPPERS = ("base_model.model.", "lycoris_")  # PEFT's and LyCORIS's own, around one model of any kind


def read_key(key: str) -> Part | None:
    """What `key` means, None where it is no key of a LoRA."""
    ending = next((ending for ending in _BY_LENGTH if key.endswith(ending)), None)
    if ending is None:
        return None
    stem = key[: -len(ending)]
    if ending == ".weight" and not stem.startswith(("lora_", "lycoris_")):
        return None
    parameter, name = ("bias", _BIAS_ENDINGS[ending]) if ending in _BIAS_ENDINGS else ("weight", _ENDINGS[ending])
    return Part(_address(stem), parameter, name)


def _address(stem: str) -> Address:
    kohya = _KOHYA.fullmatch(stem)
    if kohya:
        return Address(kohya[1], _flat(kohya[2]))
    for wrapper in _WRAPPERS:
        stem = stem.removeprefix(wrapper)
    for prefix, component in _DOTTED:
        if stem.startswith(prefix):
            return Address(component, _flat(stem.removeprefix(prefix)))
    return Address("", _flat(stem))


def _flat(path: str) -> str:
    """Underscores for dots; without "processor", which old diffusers files have between module and projection."""
    return path.replace(".processor.", ".").replace(".", "_")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A module that is loaded: "unet" or a text encoder's name, and its path there."""

    component: str
    path: str


class ModulePlaces:
    """Where the addresses of LoRA files lead in one checkpoint.

    `unet` and `text_encoders` (by name, in the family's order) are the paths of all modules that have weights;
    `original` maps module paths of the original UNet to diffusers', as `webui.checkpoints.keymap.unet_table` does.
    """

    def __init__(
        self, *, unet: Iterable[str], text_encoders: Mapping[str, Iterable[str]], original: Mapping[str, str]
    ) -> None:
        old = keymap.inverse(original)
        components = {"unet": _unet_spellings(unet, old)}
        components |= {name: _text_spellings(paths) for name, paths in text_encoders.items()}
        names = list(text_encoders)
        # te1 and te2 are what trainers call SDXL's two, also where a checkpoint has only the second (the refiner).
        called = {"unet": "unet", "te1": "clip_l", "te2": "clip_g", "te": names[0] if names else ""}
        self._places: dict[Address, Place] = {}
        for call, component in called.items():
            for flat, path in components.get(component, {}).items():
                self._places[Address(call, flat)] = Place(component=component, path=path)
        for component in reversed(components):
            for flat, path in components[component].items():
                self._places[Address("", flat)] = Place(component=component, path=path)

    def find(self, address: Address) -> Place | None:
        """The module at `address`, None where this checkpoint has none."""
        return self._places.get(address)


def _unet_spellings(paths: Iterable[str], old: Mapping[str, str]) -> dict[str, str]:
    """By diffusers' and the original's name; "to_out" alone means its linear layer, "to_out.0"."""
    spellings: dict[str, str] = {}
    for path in paths:
        for spelling in (path, keymap.translate(path, old)):
            if spelling is not None:
                spellings |= {_flat(spelling): path, _flat(_TO_OUT.sub(".to_out", spelling)): path}
    return spellings


def _text_spellings(paths: Iterable[str]) -> dict[str, str]:
    """With and without "text_model", which transformers dropped from the paths of its CLIP models in version 5."""
    spellings: dict[str, str] = {}
    for path in paths:
        bare = _flat(path.removeprefix("text_model."))
        spellings |= {bare: path, f"text_model_{bare}": path}
    return spellings
