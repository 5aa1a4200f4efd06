"""Compiled blocks answer as they are, can be let go again, and say where they cannot be had."""

from __future__ import annotations

import os

import pytest
import torch

from webui.hardware.compilation import REPEATED, is_compiled, set_compiled, use_folder, why_not

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def unet(make_unet):
    return make_unet()


def blocks(network):
    return [module for module in network.modules() if type(module).__name__ in REPEATED]


def test_compiled_blocks_answer_the_same_and_can_be_let_go(unet):
    x, states = torch.randn(2, 4, 8, 8), torch.randn(2, 7, 16)
    with torch.inference_mode():
        wanted = unet(x, 500, states).sample
        # The backend that traces and makes no code: no compiler is needed for the test.
        assert set_compiled(unet, wanted=True, backend="eager")
        assert all(block._compiled_call_impl is not None for block in blocks(unet))
        got = unet(x, 500, states).sample
    assert torch.allclose(got, wanted, atol=1e-5)
    assert not set_compiled(unet, wanted=True, backend="eager")
    assert is_compiled(unet)

    assert set_compiled(unet, wanted=False)
    assert all(block._compiled_call_impl is None for block in blocks(unet))
    assert not set_compiled(unet, wanted=False)
    assert not is_compiled(unet)


def test_a_network_of_other_blocks_is_left_alone():
    assert not set_compiled(torch.nn.Sequential(torch.nn.Linear(2, 2)), wanted=True)


def test_what_is_missing_is_said(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert "C++ compiler" in why_not(CPU)
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}" if name == "clang++" else None)
    assert why_not(CPU) == ""
    assert "meta" in why_not(torch.device("meta"))


def test_what_is_missing_for_a_card_is_said_before_a_picture_fails_over_it(monkeypatch, tmp_path):
    card = torch.device("cuda", 0)
    capability = (6, 1)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "triton" in why_not(card)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert "Volta" in why_not(card)
    capability = (7, 5)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/g++" if name == "g++" else None)
    assert "C compiler" in why_not(card)
    monkeypatch.setenv("CC", "gcc-12")
    monkeypatch.setattr("sysconfig.get_path", lambda *_: str(tmp_path))
    assert "headers" in why_not(card)
    (tmp_path / "Python.h").touch()
    assert why_not(card) == ""
    (tmp_path / "Python.h").unlink()
    monkeypatch.setattr("sys.platform", "win32")
    assert why_not(card) == ""


def test_a_folder_that_the_environment_names_stays(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    use_folder(tmp_path / "ours")
    use_folder(tmp_path / "other")
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "ours")
