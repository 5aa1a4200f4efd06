"""Files that are whole or not there: no overwriting, no leftovers, no file taken from under its writer."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from webui.core import durable


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_new(folder: Path, data: bytes) -> None:
    temporary = durable.temporary_path(folder, "a")
    with durable.new_temporary(temporary) as descriptor:
        durable.fill(descriptor, data)
        durable.publish(temporary, folder / "a.bin")


def test_a_published_file_is_whole_and_alone(tmp_path):
    write_new(tmp_path, b"x" * 1_000_000)
    assert names(tmp_path) == ["a.bin"]
    assert (tmp_path / "a.bin").read_bytes() == b"x" * 1_000_000


@pytest.mark.parametrize("links", [True, False])
def test_publishing_never_overwrites(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    (tmp_path / "a.bin").write_bytes(b"old")
    with pytest.raises(FileExistsError):
        write_new(tmp_path, b"new")
    assert names(tmp_path) == ["a.bin"]
    assert (tmp_path / "a.bin").read_bytes() == b"old"


def no_links(source, target, **options):
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


def test_filesystems_without_links_are_served(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", no_links)
    write_new(tmp_path, b"new")
    assert names(tmp_path) == ["a.bin"]


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    def full(descriptor, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "a.bin").write_bytes(b"old")
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        durable.replace_file(tmp_path / "a.bin", b"new")
    assert names(tmp_path) == ["a.bin"]
    assert (tmp_path / "a.bin").read_bytes() == b"old"


def test_replacing_a_file(tmp_path):
    durable.replace_file(tmp_path / "a.bin", b"old")
    durable.replace_file(tmp_path / "a.bin", b"new")
    assert names(tmp_path) == ["a.bin"]
    assert (tmp_path / "a.bin").read_bytes() == b"new"


def test_a_temporary_name_has_one_holder(tmp_path):
    temporary = durable.temporary_path(tmp_path, "a")
    with durable.new_temporary(temporary):
        with pytest.raises(FileExistsError), durable.new_temporary(temporary):
            pass
        assert temporary.exists()
    assert not temporary.exists()


def test_sweeping_takes_leftovers_and_nothing_else(tmp_path):
    deep = tmp_path / "txt2img" / "2026-01-01"
    durable.make_folder(deep)
    for name in (".00001.part", ".hidden", "whole.png", "name.part"):
        (deep / name).write_bytes(b"x")
    outside = tmp_path.parent / f"{tmp_path.name}-outside.part"
    outside.write_bytes(b"x")
    with durable.new_temporary(durable.temporary_path(deep, "00002")):
        assert durable.sweep(tmp_path) == 1
        assert names(deep) == [".00002.part", ".hidden", "name.part", "whole.png"]
    assert durable.sweep(tmp_path) == 0
    assert outside.exists()


def test_a_file_swept_before_it_was_locked_is_made_again(tmp_path, monkeypatch):
    temporary = durable.temporary_path(tmp_path, "a")
    real_open = os.open
    opened = []

    def open_and_lose(path, flags, *rest):
        descriptor = real_open(path, flags, *rest)
        if flags & os.O_EXCL and not opened:
            os.unlink(path)  # noqa: PTH108 — what a sweep in another process does at the worst moment
        opened.append(flags)
        return descriptor

    monkeypatch.setattr(os, "open", open_and_lose)
    with durable.new_temporary(temporary) as descriptor:
        durable.fill(descriptor, b"kept")
        assert temporary.read_bytes() == b"kept"
    assert len(opened) == 2


def test_sweeping_a_folder_that_is_not_there_finds_nothing(tmp_path):
    assert durable.sweep(tmp_path / "nowhere") == 0


def test_a_file_in_the_place_of_a_folder_is_an_error(tmp_path):
    (tmp_path / "a").write_bytes(b"x")
    with pytest.raises(OSError, match="a"):
        durable.make_folder(tmp_path / "a" / "b")
    with pytest.raises(FileExistsError):
        durable.make_folder(tmp_path / "a")
