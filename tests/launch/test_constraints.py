"""constraints.txt pins everything that pyproject.toml asks for, in a form that every machine's pip understands."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins() -> list[str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def requirements() -> set[str]:
    """The names in `dependencies` and the extras; read by pattern, for Python 3.10 has no TOML reader."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    lists = re.findall(r"^(?:dependencies|test|xformers) = \[(.*?)\]", text, re.MULTILINE | re.DOTALL)
    return {normal(name) for entries in lists for name in re.findall(r'"([A-Za-z0-9_.-]+)', entries)}


def test_every_requirement_is_pinned():
    assert "gradio" in requirements()
    assert requirements() <= {normal(pin.split("==")[0]) for pin in pins()}


def test_pins_are_exact_and_leave_the_build_to_pip():
    for pin in pins():
        assert re.fullmatch(r'[A-Za-z0-9_.-]+==[0-9][A-Za-z0-9.]*(; python_version (<|>=) "3\.11")?', pin), pin


def test_a_package_with_two_pins_has_one_for_each_python():
    named: dict[str, list[str]] = {}
    for pin in pins():
        named.setdefault(normal(pin.split("==")[0]), []).append(pin.partition("; ")[2])
    for name, markers in named.items():
        assert len(markers) == 1 or sorted(markers) == ['python_version < "3.11"', 'python_version >= "3.11"'], name
