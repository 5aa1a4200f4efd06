"""docs/extensions.md names every hook with its arguments, and every field that an extension meets."""

import dataclasses
import inspect
import re
from pathlib import Path
from typing import get_args

import pytest

from webui.extensions import hookspecs

PAGE = (Path(__file__).parents[2] / "docs" / "extensions.md").read_text(encoding="utf-8")
HOOKS = {name: value for name, value in vars(hookspecs).items() if name.startswith("atelier_")}


def test_every_hook_is_a_heading_with_its_arguments_and_no_other():
    expected = {f"{name}({', '.join(inspect.signature(hook).parameters)})" for name, hook in HOOKS.items()}
    assert set(re.findall(r"^### `(atelier_.*)`$", PAGE, flags=re.MULTILINE)) == expected


@pytest.mark.parametrize("hook", HOOKS.values(), ids=HOOKS)
def test_every_hook_is_marked_and_explained(hook):
    assert hasattr(hook, f"{hookspecs.PROJECT}_spec")
    assert inspect.getdoc(hook)


@pytest.mark.parametrize("kind", [hookspecs.ExtensionSetting, hookspecs.ExtensionContext, hookspecs.Tab])
def test_every_field_is_documented(kind):
    missing = [
        field.name for field in dataclasses.fields(kind) if not re.search(rf"`{field.name}\b|{field.name}=", PAGE)
    ]
    assert not missing


def test_every_kind_of_setting_is_documented():
    assert not [kind for kind in get_args(hookspecs.SettingKind) if f'`"{kind}"`' not in PAGE]
