"""The built-in model's prompts mean something: asked for 50 drawn objects, it draws what was said."""

from __future__ import annotations

from pathlib import Path

from tools.builtin_model.shapes_exam import engine_draw, judge, single_cases

MODELS = Path(__file__).resolve().parents[2] / "models"
LEAST_RIGHT = 0.85
# 43 of 50 had nothing wrong when the file was made; kernels of another machine may tip one that is nearly a miss.
LEAST_ALL_RIGHT = 0.80


def test_fifty_prompts_come_out_right(tmp_path: Path) -> None:
    verdicts = list(judge(single_cases(50), engine_draw(MODELS)))
    wrong = [verdict for verdict in verdicts if not verdict.all_right]
    for verdict in wrong:
        verdict.image.save(tmp_path / f"{verdict.case.prompt}.png")
    right = {
        name: sum(verdict.right[name] for verdict in verdicts) / len(verdicts)
        for name in ("background", "colour", "shape")
    }
    all_right = 1 - len(wrong) / len(verdicts)
    print(f"right: {right}; in everything: {all_right:.0%}")
    assert min(right.values()) >= LEAST_RIGHT, f"right: {right}; the pictures with a mistake are in {tmp_path}"
    assert all_right >= LEAST_ALL_RIGHT, f"{len(wrong)} of 50 have a mistake; they are in {tmp_path}"
