"""What an infotext asks for, as a request: the inverse of `writing`, and forgiving of what this machine lacks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Generic, TypeVar

from webui.core import catalogue
from webui.core.errors import InvalidRequest
from webui.core.fields import replaced
from webui.core.infotext.grammar import Infotext
from webui.core.infotext.mapping import ALWAYS, SIZE, SWITCHES, Pair, pairs_of
from webui.core.requests import Img2Img, Inpaint, Txt2Img
from webui.core.validation import validate

Request = TypeVar("Request", bound=Txt2Img | Img2Img | Inpaint)

# A1111 writes a refiner as "name [hash]".
_NAME_AND_HASH = re.compile(r"(.*?)(?: \[([0-9a-fA-F]{4,64})\])?", re.DOTALL)
_LORA_TAG = re.compile(r"<(lora|lyco):([^:<>]+)", re.IGNORECASE)
_SUFFIX = re.compile(r"\.(safetensors|ckpt|pt|pth|bin)$", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownModels:
    """The model files of this machine: names → short hashes, "" where a file was not hashed yet.

    A kind that is None is not looked at.
    """

    checkpoints: Mapping[str, str] | None = None
    vaes: Mapping[str, str] | None = None
    loras: Mapping[str, str] | None = None
    embeddings: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pasted(Generic[Request]):
    """The request that an infotext asks for, and a sentence for each thing it names that could not be taken over."""

    request: Request
    warnings: tuple[str, ...] = ()


def infotext_to_request(info: Infotext, base: Request, models: KnownModels | None = None) -> Pasted[Request]:
    """`base` with everything that `info` says about a request of its kind.

    What the text leaves out becomes what leaving it out means (clip skip 1, noise of a graphics card, …), or stays as
    in `base` where it means nothing; so does all of `base` under a text without parameters. What is unknown or out of
    range stays as well, and `warnings` names it: from a valid `base` comes a valid request. The text is about one
    picture, so batch size and count stay. Model files are taken over where `models` holds them, by hash before name.
    """
    paste = _Paste(info, base)
    paste.take({"prompt": info.prompt, "negative_prompt": info.negative_prompt})
    if info.pairs:
        sampler, schedule = info.sampling
        paste.name("sampler", sampler, catalogue.SAMPLERS)
        paste.name("schedule_type", schedule, catalogue.SCHEDULE_TYPES)
        for switch, mark in SWITCHES.items():
            if hasattr(base, switch.partition(".")[0]):
                paste.take({switch: mark in info.pairs})
        for pair in pairs_of(base, paste.changes.get("sampler", base.sampler)):
            paste.pair(pair)
        paste.models(models or KnownModels())
    # Every pair was checked; `base` itself may hold whatever a half-filled form does.
    return Pasted(request=replaced(base, paste.changes), warnings=tuple(paste.warnings))


@dataclass(slots=True)
class _Paste:
    """Collects the fields to change, by dotted names, and what could not be taken over."""

    info: Infotext
    base: Txt2Img | Img2Img | Inpaint
    changes: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def take(self, changes: Mapping[str, Any]) -> str | None:
        """Takes `changes` over if they are allowed beside those before them; else says why not."""
        try:
            validate(replaced(_clean(self.base), {**self.changes, **changes}))
        except InvalidRequest as error:
            return str(error)
        self.changes.update(changes)
        return None

    def pair(self, pair: Pair) -> None:
        asked = not pair.when or SWITCHES[pair.when] in self.info.pairs
        text = self.info.pairs.get(pair.key, "") if asked else ""
        value = pair.kind.read(text) if text else pair.absent
        if value is ALWAYS:
            return
        if text and value is None:
            self._left_out(f"{pair.key} {text[:40]!r}", f"it is not {pair.kind.said}.")
            return
        values = (value.width, value.height) if pair.kind is SIZE else (value,)
        refused = self.take(dict(zip(pair.fields, values, strict=True)))
        if refused:
            self._left_out(f"{pair.key} {text[:40]!r}", refused)

    def name(self, field_name: str, name: str, known: tuple[str, ...]) -> None:
        """Takes over a name of the catalogue, in any case; names the nearest for one it does not have."""
        found = next((choice for choice in known if choice.casefold() == name.casefold()), None)
        if found is not None:
            self.take({field_name: found})
        elif name:
            what = f"The {field_name.replace('_', ' ')} {name[:80]!r}"
            self._left_out(what, f"Atelier does not have it. {_nearest(name, known)}".rstrip())

    def models(self, models: KnownModels) -> None:
        pairs = self.info.pairs
        if models.checkpoints is not None:
            self._file("checkpoint", "Model", pairs.get("Model hash", ""), "checkpoint", models.checkpoints)
            self._file("refiner", "Refiner", "", "refiner", models.checkpoints, absent="")
            if isinstance(self.base, Txt2Img):
                self._file("checkpoint", "Hires checkpoint", "", "hires.checkpoint", models.checkpoints, absent="")
        if models.vaes is not None:
            vaes = {**dict.fromkeys((catalogue.VAE_AUTOMATIC, catalogue.VAE_OWN), ""), **models.vaes}
            self._file("VAE", "VAE", pairs.get("VAE hash", ""), "vae", vaes, absent=catalogue.VAE_AUTOMATIC)
        if models.loras is not None:
            self._loras(models.loras)
        if models.embeddings is not None:
            for name, digest in _hashes(pairs.get("TI hashes", "")).items():
                found, trouble = find_model(name, digest, models.embeddings)
                if trouble or found is None or found.rsplit("/", 1)[-1].casefold() != name.casefold():
                    self.warnings.append(f"The embedding {name[:80]!r} {trouble or f'is here under the name {found}.'}")

    def _file(
        self, what: str, key: str, digest: str, field_name: str, known: Mapping[str, str], absent: str | None = None
    ) -> None:
        text = self.info.pairs.get(key, "")
        if not text:
            if absent is not None:
                self.take({field_name: absent})
            return
        name, digest = (text, digest) if text in known else _name_and_hash(text, digest)
        found, trouble = find_model(name, digest, known)
        if found is not None:
            self.take({field_name: found})
        if trouble:
            self.warnings.append(f"The {what} {name[:80]!r} {trouble}")

    def _loras(self, known: Mapping[str, str]) -> None:
        """Names LoRAs of the prompts that are not here, and gives those that are their name on this machine."""
        digests = _hashes(self.info.pairs.get("Lora hashes", ""))
        told: set[str] = set()

        def here(tag: re.Match[str]) -> str:
            name = tag[2].strip()
            found, trouble = find_model(name, digests.get(name, ""), known)
            if trouble and name not in told:
                told.add(name)
                self.warnings.append(f"The LoRA {name[:80]!r} {trouble}")
            if found is None or found.rsplit("/", 1)[-1].casefold() == name.casefold():
                return tag[0]
            return f"<{tag[1]}:{found.rsplit('/', 1)[-1]}"

        for field_name in ("prompt", "negative_prompt"):
            self.changes[field_name] = _LORA_TAG.sub(here, self.changes[field_name])

    def _left_out(self, what: str, why: str) -> None:
        self.warnings.append(f"{what} was left out: {why}")


def find_model(name: str, digest: str, known: Mapping[str, str]) -> tuple[str | None, str]:
    """Which of the `known` files (name → hash) is meant, None for none, and a sentence's end where there is doubt.

    The file of the same hash comes first, whatever its name; then the same name, then the same last part of the name
    without its folder and suffix.
    """
    same_hash = [other for other, its in known.items() if digest and its and _same_hash(digest, its)]
    same_name = [other for other in known if other == name] or [other for other in known if _bare(other) == _bare(name)]
    both = [other for other in same_name if other in same_hash]
    if same_hash:
        return (both or same_hash)[0], ""
    if len(same_name) > 1:
        return None, f"was left out: it could be {' or '.join(same_name)}."
    if not same_name:
        offer = _nearest(name, tuple(known))
        return None, f"was left out: it is not in the models folder. {offer}".rstrip()
    found = same_name[0]
    if digest and known[found]:
        return found, f"is another file here: its hash is {known[found]}, the text says {digest}; pictures may differ."
    return found, ""


def _same_hash(one: str, other: str) -> bool:
    """Hashes are cut at different lengths; fewer than eight digits say nothing."""
    length = min(len(one), len(other))
    return length >= 8 and one[:length].lower() == other[:length].lower()


def _bare(name: str) -> str:
    return _SUFFIX.sub("", name.replace("\\", "/").rsplit("/", 1)[-1]).casefold()


def _nearest(name: str, known: tuple[str, ...]) -> str:
    by_bare = {_bare(other): other for other in known}
    close = get_close_matches(_bare(name)[:80], by_bare, n=1)
    return f"The nearest name is {by_bare[close[0]]!r}." if close else ""


def _name_and_hash(text: str, digest: str) -> tuple[str, str]:
    """A text such as "name [hash]" taken apart; without a hash, `digest` stays."""
    found = _NAME_AND_HASH.fullmatch(text)
    return (found[1], found[2] or digest) if found else (text, digest)


def _hashes(text: str) -> dict[str, str]:
    """A text such as "one: 11aa, two: 22bb" as hashes by name."""
    pieces = (piece.rpartition(":") for piece in text.split(","))
    return {name.strip(): digest.strip() for name, _, digest in pieces if name.strip()}


def _clean(base: Txt2Img | Img2Img | Inpaint) -> Txt2Img | Img2Img | Inpaint:
    """A valid request of the kind of `base`, to check single fields in."""
    if isinstance(base, Inpaint):
        return Inpaint(init_image=b"picture", mask=b"mask")
    return Img2Img(init_image=b"picture") if isinstance(base, Img2Img) else Txt2Img()
