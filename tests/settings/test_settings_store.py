"""The settings file: kept whole, checked on the way in and out, set aside when damaged."""

from __future__ import annotations

import errno
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from webui.core.errors import DiskFull, UserError
from webui.settings import Settings, SettingsStore


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "data" / "settings.json"


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.parent.iterdir())


def test_without_a_file_there_are_defaults_and_no_file_is_made(path):
    store = SettingsStore(path)
    assert store.current == Settings()
    assert store.notice is None
    assert not path.parent.exists()


def test_the_defaults_are_those_of_the_documentation():
    assert Settings().model_dump() == {
        "checkpoint": "",
        "vae": "",
        "model_memory_gib": 0,
        "video_memory_gib": 0,
        "attention": "auto",
        "compile": False,
        "precision": "auto",
        "weights": "full",
        "fast_arithmetic": False,
        "video_memory_use": "auto",
        "previews": True,
        "previews_per_second": 4.0,
        "image_format": "png",
        "filename_pattern": "[number]-[seed]",
        "max_image_pixels": 2**26,
        "extensions": {},
        "disabled_extensions": [],
    }
    assert all(field.description for field in Settings.model_fields.values())


def test_changes_are_kept(path):
    store = SettingsStore(path)
    changed = store.update(checkpoint="模型", extensions={"one": {"list": [1, 2.5, None, {"é": "🐈"}]}}, previews=False)
    assert store.current is changed
    store.update(previews_per_second=2)
    again = SettingsStore(path)
    assert again.current == store.current
    assert again.current.checkpoint == "模型"
    assert again.notice is None
    assert names(path) == ["settings.json"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"colour": 1}, "There is no setting named 'colour'; the names are checkpoint, attention"),
        ({"previews_per_second": 31}, "'previews_per_second' cannot be '31': Input should be less than or equal to 30"),
        ({"previews_per_second": 0}, "'previews_per_second' cannot be '0'"),
        ({"previews_per_second": float("nan")}, "'previews_per_second' cannot be 'nan'"),
        ({"previews": "yes"}, "'previews' cannot be 'yes'"),
        ({"checkpoint": None}, "'checkpoint' cannot be 'None'"),
        ({"checkpoint": "\ud800"}, "cannot be kept as JSON"),
        ({"attention": ""}, "'attention' cannot be ''"),
        ({"image_format": "gif"}, "'image_format' cannot be 'gif'"),
        ({"filename_pattern": "../[number]"}, r"may not hold any of .* try \[number\]-\[seed\]"),
        ({"max_image_pixels": 10**12}, "'max_image_pixels' cannot be '1000000000000'"),
        ({"extensions": {"one": {"key": object()}}}, "'extensions.one.key' cannot be '<object"),
        ({"extensions": {"one": {"key": float("inf")}}}, "cannot be kept as JSON"),
        ({"disabled_extensions": [1]}, "'disabled_extensions.0' cannot be '1'"),
    ],
)
def test_bad_values_are_named_and_change_nothing(path, changes, said):
    store = SettingsStore(path)
    store.update(checkpoint="kept")
    before = path.read_bytes()
    with pytest.raises(UserError, match=said):
        store.update(attention="sdpa", **changes) if "attention" not in changes else store.update(**changes)
    assert store.current == Settings(checkpoint="kept")
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"null", b"[]", b"\xff\xfe\0", b"\0" * 4096, b"[" * 100_000, b'{"previews": "yes"}', b'{"colour": 1}',
     b'{"filename_pattern": "x"}'],
    ids=lambda content: repr(content[:12]),
)  # fmt: skip
def test_a_damaged_file_is_set_aside_with_a_notice(path, content):
    path.parent.mkdir()
    for count in (1, 2):
        path.write_bytes(content)
        store = SettingsStore(path)
        assert store.current == Settings()
        assert store.notice is not None
        assert store.notice.startswith("The settings were damaged, so defaults are used. The old file is kept as ")
        aside = [name for name in names(path) if name.startswith("settings.json.broken-")]
        assert len(aside) == count
        assert all((path.parent / name).read_bytes() == content for name in aside)
        assert not path.exists()
    store.update(checkpoint="new")
    assert SettingsStore(path).current.checkpoint == "new"


def test_a_file_that_cannot_be_read_is_not_touched(path):
    path.mkdir(parents=True)
    with pytest.raises(UserError, match=r"settings\.json cannot be read: Is a directory"):
        SettingsStore(path)
    assert path.is_dir()


def test_a_full_disk_is_said_and_changes_nothing(path, monkeypatch):
    store = SettingsStore(path)
    store.update(checkpoint="kept")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFull, match=r"settings\.json: No space left on device"):
        store.update(checkpoint="lost")
    assert store.current.checkpoint == "kept"
    assert json.loads(path.read_text("utf-8"))["checkpoint"] == "kept"
    assert names(path) == ["settings.json"]


def test_threads_lose_no_change(path):
    store = SettingsStore(path)
    start = threading.Barrier(4)

    def change(field: tuple[str, object]) -> None:
        start.wait()
        for _ in range(5):
            store.update(**dict([field]))

    with ThreadPoolExecutor(4) as pool:
        fields = [("checkpoint", "a"), ("previews", False), ("attention", "sdpa"), ("previews_per_second", 1.5)]
        list(pool.map(change, fields))
    expected = Settings(checkpoint="a", previews=False, attention="sdpa", previews_per_second=1.5)
    assert store.current == SettingsStore(path).current == expected


def test_what_is_handed_in_can_change_without_changing_the_settings(path):
    values = {"one": {"list": [1]}}
    store = SettingsStore(path)
    store.update(extensions=values)
    values["one"]["list"].append(2)
    assert store.current.extensions == {"one": {"list": [1]}}
