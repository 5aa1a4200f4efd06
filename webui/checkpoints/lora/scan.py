"""The LoRAs in the models folder, by the names that prompts use. Reads headers only and imports no torch.

A LoRA is called by its file's name, by its path below the folder, or by the name that its trainer wrote into it. Every
question looks at the folder anew; headers are read only where names of files do not answer it, and again only when a
file changed. Any thread may ask.
"""

from __future__ import annotations

import difflib
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from webui.checkpoints.header import read_header
from webui.checkpoints.walk import files_below
from webui.core.errors import LoraNotFound, UnsupportedModel

LORA_FOLDERS = ("Lora", "LyCORIS")
SUFFIXES = (".safetensors", ".pt", ".ckpt")
ALIAS_KEY = "ss_output_name"

# The width of the text that each family's cross-attention and text encoder read.
_FAMILY_BY_WIDTH = {
    768: "Stable Diffusion 1",
    1024: "Stable Diffusion 2",
    2048: "Stable Diffusion XL",
    1280: "the Stable Diffusion XL refiner",
}
_OTHER_FAMILIES = (
    (("double_blocks", "single_transformer_blocks", "single_blocks"), "FLUX"),
    (("joint_blocks",), "Stable Diffusion 3"),
    (("transformer.transformer_blocks",), "a transformer model such as Stable Diffusion 3"),
)
_DECLARATIONS = ("modelspec.architecture", "ss_base_model_version")
# The sides of a change that are as wide as the text: cross-attention's first, for text encoders may have other widths.
_SIDES = r".*(lora_down\.weight|lora_A\.weight|lora\.down\.weight|hada_w1_b|\.diff)$"
_TEXT_READERS = (re.compile(r"attn2[._](?:processor\.)?to_k" + _SIDES), re.compile(r"self_attn[._]q_proj" + _SIDES))


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraFile:
    """A LoRA that can be asked for; equal ones are the same file in the same state."""

    name: str  # the path below its folder, without the suffix
    path: Path
    size: int
    modified_ns: int


class LoraFolder:
    """The LoRAs below a models folder; the folder need not hold any."""

    def __init__(self, models: Path) -> None:
        self._roots = tuple(models / folder for folder in LORA_FOLDERS)
        self._lock = threading.Lock()
        self._aliases: dict[LoraFile, str] = {}

    def files(self) -> Sequence[LoraFile]:
        """All LoRAs by name; what has the name of an earlier one is left out."""
        found: dict[str, LoraFile] = {}
        for root in self._roots:
            for path in _candidates(root):
                name = path.relative_to(root).with_suffix("").as_posix()
                try:
                    state = path.stat()
                except OSError:  # a dangling link, or gone in between
                    continue
                file = LoraFile(name=name, path=path, size=state.st_size, modified_ns=state.st_mtime_ns)
                found.setdefault(name, file)
        return sorted(found.values(), key=lambda file: file.name.casefold())

    def find(self, name: str) -> LoraFile:
        """The LoRA that a prompt calls `name`; raises `LoraNotFound` naming the nearest, or those it could mean."""
        files = self.files()
        calls = (
            {file: file.name for file in files},
            {file: file.name.rsplit("/", 1)[-1] for file in files},
        )
        for called in calls:
            if found := [file for file, call in called.items() if call == name]:
                return _only(name, found)
        aliases = {file: self.alias(file) for file in files}
        if found := [file for file, alias in aliases.items() if alias == name]:
            return _only(name, found)
        raise LoraNotFound(self._sentence(name, {*calls[0].values(), *calls[1].values(), *aliases.values()} - {""}))

    def alias(self, file: LoraFile) -> str:
        """The name that the trainer wrote into the file, "" where there is none or the file is damaged."""
        with self._lock:
            if file not in self._aliases:
                self._aliases[file] = _alias(file.path)
            return self._aliases[file]

    def _sentence(self, name: str, known: set[str]) -> str:
        by_folded = {call.casefold(): call for call in sorted(known)}
        near = [by_folded[call] for call in difflib.get_close_matches(name.casefold(), by_folded, n=3, cutoff=0.5)]
        if near:
            advice = f"did you mean {' or '.join(near)}?"
        elif known:
            advice = "take it out of the prompt, or put its file there."
        else:
            advice = "there are none yet; put its file there."
        return f"There is no LoRA {name!r} in {self._roots[0]}: {advice}"


def family_title(shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str]) -> str:
    """What a LoRA was made for, told by the shapes of its tensors, or else by its metadata; "" where neither says."""
    for marks, title in _OTHER_FAMILIES:
        if any(mark in key for key in shapes for mark in marks):
            return title
    if any("lora_te2_" in key or key.startswith("text_encoder_2.") for key in shapes):
        return _FAMILY_BY_WIDTH[2048]
    for layer in _TEXT_READERS:
        for key, shape in shapes.items():
            if layer.search(key) and len(shape) >= 2 and shape[1] in _FAMILY_BY_WIDTH:
                return _FAMILY_BY_WIDTH[shape[1]]
    return next((metadata[key] for key in _DECLARATIONS if metadata.get(key)), "")


def _only(name: str, found: list[LoraFile]) -> LoraFile:
    if len(found) == 1:
        return found[0]
    raise LoraNotFound(f"The LoRA {name!r} could be {' or '.join(file.name for file in found)}; write one of these.")


def _alias(path: Path) -> str:
    if path.suffix.lower() != ".safetensors":
        return ""
    try:
        return read_header(path).metadata.get(ALIAS_KEY, "").strip()
    except UnsupportedModel:  # whoever asks for it by its own name is told what is wrong with it
        return ""


def _candidates(root: Path) -> Iterator[Path]:
    """What may be a LoRA below `root`, in order of path."""
    yield from (path for path in files_below(root) if path.name.lower().endswith(SUFFIXES))
