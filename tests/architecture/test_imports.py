"""The import rules of docs/architecture.md, checked over the syntax trees of webui/."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "webui").rglob("*.py"))

# A room may import rooms of a lower number, and rooms of its own number only where ALLOWED_BESIDE says so.
LAYERS = {
    "core": 0,
    "settings": 1,
    "database": 1,
    "hardware": 2,
    "checkpoints": 3,
    "engine": 4,
    "gallery": 5,
    "extensions": 5,
    "jobs": 5,
    "api": 6,
    "ui": 6,
    "server": 7,
    "headless": 7,
    "bootstrap": 8,
    "doctor": 8,
    "commands": 9,
    "cli": 10,
    "__main__": 11,
}
ALLOWED_BESIDE = {("jobs", "gallery")}
# These know the engine side through `webui.core.ports` alone, though they stand above it.
WITHOUT_ENGINE = {"gallery", "extensions", "jobs", "api", "ui", "server", "headless"}
ENGINE_SIDE = {"hardware", "checkpoints", "engine"}
# torch and its company would hold up the page.
WITHOUT_TORCH = {"core", "settings", "database", "gallery", "extensions", "jobs", "api", "ui", "server", "headless"}
HEAVY = {"torch", "torchvision", "diffusers", "transformers", "open_clip", "spandrel", "accelerate", "xformers"}
GRADIO_ROOMS = {"ui", "server", "bootstrap"}
FASTAPI_ROOMS = {"api", "server", "bootstrap"}


def _room(path: Path) -> str:
    return path.relative_to(ROOT / "webui").parts[0].removesuffix(".py")


def _imports(path: Path, *, top_level_only: bool = False) -> list[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    names: list[str] = []
    for node in nodes:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the layer; write it out"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def _identify(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_every_room_has_a_layer() -> None:
    assert {_room(path) for path in SOURCES} - {"__init__"} <= set(LAYERS)


@pytest.mark.parametrize("path", SOURCES, ids=_identify)
def test_imports_point_downward(path: Path) -> None:
    room = _room(path)
    if room == "__init__":
        return
    for name in _imports(path):
        parts = name.split(".")
        if parts[0] != "webui" or len(parts) < 2 or parts[1] not in LAYERS or parts[1] == room:
            continue
        other = parts[1]
        assert LAYERS[other] < LAYERS[room] or (room, other) in ALLOWED_BESIDE, f"{room} may not import {name}"
        assert not (room in WITHOUT_ENGINE and other in ENGINE_SIDE), f"{room} sees the engine through core.ports only"


@pytest.mark.parametrize("path", SOURCES, ids=_identify)
def test_heavy_libraries_stay_in_their_rooms(path: Path) -> None:
    room = _room(path)
    for name in _imports(path):
        library = name.split(".")[0]
        assert not (library in HEAVY and room in WITHOUT_TORCH), f"{room} may not import {library}"
        assert library != "gradio" or room in GRADIO_ROOMS, f"{room} may not import gradio"
        assert library not in ("fastapi", "starlette") or room in FASTAPI_ROOMS, f"{room} may not import {library}"


def test_the_tests_see_the_sources() -> None:
    assert len(SOURCES) > 20
