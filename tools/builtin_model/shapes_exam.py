"""What the model is asked about drawn shapes, through Atelier's own engine, and how `analysis` judges the answers.

Half of the single objects are combinations of shape, colour and background that the training never showed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from tools.builtin_model.analysis import Sight, look, place_name
from tools.builtin_model.scenes import COLOURS, COUNTS, POSITIONS, SHAPES, held_out, plural, with_article
from webui.checkpoints.scan import CheckpointFolder
from webui.core.events import ImageReady
from webui.core.ports import Control
from webui.core.requests import Txt2Img
from webui.engine.manager import EngineManager
from webui.settings.schema import Settings

Draw = Callable[[str, int], Image.Image]
"""Prompt and seed → picture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A prompt, its seed, and for each thing it says whether a picture shows it."""

    group: str
    prompt: str
    seed: int
    checks: dict[str, Callable[[Sight], bool]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a picture got right of its case."""

    case: Case
    image: Image.Image
    right: dict[str, bool]

    @property
    def all_right(self) -> bool:
        """Whether nothing that the prompt says is missing."""
        return all(self.right.values())


def _first(sight: Sight, attribute: str) -> str:
    return getattr(sight.objects[0], attribute) if sight.objects else ""


def single_cases(count: int) -> list[Case]:
    """One object each; the odd ones are combinations that were held out of the training."""
    rng = random.Random(4000)
    cases: list[Case] = []
    while len(cases) < count:
        shape = rng.choice(SHAPES)
        colour, background = rng.sample(tuple(COLOURS), 2)
        unseen = len(cases) % 2 == 1
        if held_out(shape, colour, background) is not unseen:
            continue
        cases.append(
            Case(
                group="unseen" if unseen else "seen",
                prompt=f"{with_article(colour)} {shape} on {with_article(background)} background",
                seed=len(cases),
                checks={
                    "background": lambda sight, wanted=background: sight.background == wanted,
                    "colour": lambda sight, wanted=colour: _first(sight, "colour") == wanted,
                    "shape": lambda sight, wanted=shape: _first(sight, "shape") == wanted,
                },
            )
        )
    return cases


def count_cases(count: int) -> list[Case]:
    """Two to four objects alike."""
    rng = random.Random(5000)
    cases: list[Case] = []
    for index in range(count):
        number, shape = 2 + index % 3, rng.choice(SHAPES)
        colour, background = rng.sample(tuple(COLOURS), 2)
        cases.append(
            Case(
                group="count",
                prompt=f"{COUNTS[number]} {colour} {plural(shape)} on {with_article(background)} background",
                seed=index,
                checks={
                    "background": lambda sight, wanted=background: sight.background == wanted,
                    "colour": lambda sight, wanted=colour: {seen.colour for seen in sight.objects} == {wanted},
                    "shape": lambda sight, wanted=shape: {seen.shape for seen in sight.objects} == {wanted},
                    "count": lambda sight, wanted=number: len(sight.objects) == wanted,
                },
            )
        )
    return cases


def place_cases(count: int) -> list[Case]:
    """A small object at each of the nine places."""
    rng = random.Random(6000)
    places = tuple(POSITIONS)
    cases: list[Case] = []
    for index in range(count):
        place, shape = places[index % len(places)], rng.choice(SHAPES)
        colour, background = rng.sample(tuple(COLOURS), 2)
        cases.append(
            Case(
                group="place",
                prompt=f"a small {colour} {shape} at the {place} on {with_article(background)} background",
                seed=index,
                checks={
                    "background": lambda sight, wanted=background: sight.background == wanted,
                    "colour": lambda sight, wanted=colour: _first(sight, "colour") == wanted,
                    "shape": lambda sight, wanted=shape: _first(sight, "shape") == wanted,
                    "place": lambda sight, wanted=place: bool(sight.objects) and place_name(sight.objects[0]) == wanted,
                },
            )
        )
    return cases


def judge(cases: Sequence[Case], draw: Draw) -> Iterator[Verdict]:
    """Draws each case and says what came out right."""
    for case in cases:
        image = draw(case.prompt, case.seed)
        sight = look(image)
        yield Verdict(case=case, image=image, right={name: check(sight) for name, check in case.checks.items()})


def shares(verdicts: Sequence[Verdict]) -> dict[str, dict[str, float]]:
    """Per group: the share of pictures with each thing right, and with everything right ("all")."""
    table: dict[str, dict[str, float]] = {}
    for group in dict.fromkeys(verdict.case.group for verdict in verdicts):
        members = [verdict for verdict in verdicts if verdict.case.group == group]
        row = {name: sum(verdict.right[name] for verdict in members) / len(members) for name in members[0].right}
        table[group] = {**row, "all": sum(verdict.all_right for verdict in members) / len(members)}
    return table


def engine_draw(models: Path, model: str = "", **settings: Any) -> Draw:
    """Draws through Atelier's engine at the native size of `model`, "" being the default one.

    `settings` are fields of `Txt2Img`.
    """
    folder = CheckpointFolder(models)
    engine = EngineManager(folder, Settings)
    size = folder.checkpoint(model).native_size

    def draw(prompt: str, seed: int) -> Image.Image:
        request = Txt2Img(prompt=prompt, seed=seed, checkpoint=model, width=size.width, height=size.height, **settings)
        return next(
            event.image for event in engine.generate(request, control=Control()) if isinstance(event, ImageReady)
        )

    return draw
