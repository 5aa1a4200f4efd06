import logging
import re

import pytest
import torch

from webui.core.errors import UserError
from webui.hardware.attention import chunked, selector
from webui.hardware.attention.backend import Backend
from webui.hardware.attention.selector import BACKENDS, select_attention

CPU = torch.device("cpu")


def good(name):
    return Backend(name, lambda: chunked.attend)


def missing():
    raise ImportError("No module named 'spam'")


def failing():
    def attend(query, key, value, mask=None):
        raise RuntimeError("no kernel image is available\nfor execution on the device")

    return attend


def wrong():
    return lambda query, key, value, mask=None: query * 0.5


def not_a_number():
    return lambda query, key, value, mask=None: query * float("nan")


def only_small_heads():
    def attend(query, key, value, mask=None):
        if query.shape[-1] > 64:
            raise ValueError("head size 128 is not supported")
        return chunked.attend(query, key, value, mask)

    return attend


def select(*backends, override="auto", head_size=8):
    return select_attention(CPU, torch.float32, head_size, override, backends=backends)


@pytest.fixture(autouse=True)
def alike(monkeypatch):
    """All backends take as long, unless a test says otherwise: no test depends on the machine's mood."""
    monkeypatch.setattr(selector, "_time", lambda *_: 1.0)


@pytest.fixture
def seconds(monkeypatch):
    """Says how long backends take, in the order of the trials."""

    def say(*times):
        queue = iter(times)
        monkeypatch.setattr(selector, "_time", lambda *_: next(queue))

    return say


@pytest.mark.parametrize(
    ("load", "reason"),
    [
        (missing, r"not installed \(No module named 'spam'\)"),
        (failing, "RuntimeError: no kernel image is available$"),
        (wrong, "wrong by"),
        (not_a_number, "wrong by nan"),
    ],
)
def test_what_does_not_work_is_refused_with_the_reason(load, reason):
    choice = select(Backend("broken", load), good("works"))

    assert choice.name == "works"
    assert choice.refused.keys() == {"broken"}
    assert re.search(reason, choice.refused["broken"])


def test_the_first_stays_unless_another_is_clearly_faster(seconds):
    seconds(1.5, 1.0)
    assert select(good("first-a"), good("second-a")).name == "first-a"

    seconds(5.0, 1.0)
    assert select(good("first-b"), good("second-b")).name == "second-b"


def test_on_a_gpu_the_order_decides_and_nothing_is_timed():
    assert selector._fastest({"first": 9.0, "second": 1.0}, torch.device("cuda")) == "first"


def test_a_backend_must_work_for_every_head_size():
    backends = (Backend("small", only_small_heads), good("any"))

    assert select(*backends, head_size=64).refused == {}
    assert select(*backends, head_size={64, 128}).name == "any"
    assert "head size 128" in select(*backends, head_size={64, 128}).refused["small"]


def test_trials_are_remembered(caplog):
    loads = []

    def load():
        loads.append(1)
        return chunked.attend

    backend = Backend("counted", load)
    with caplog.at_level(logging.INFO):
        assert select(backend).name == select(backend).name == "counted"

    assert len(loads) == 1
    assert caplog.text.count("Attention: counted") == 1


def test_an_override_is_obeyed(seconds):
    seconds(1.0, 99.0)

    assert select(good("first-c"), good("second-c"), override="second-c").name == "second-c"


def test_an_unknown_override_lists_the_names():
    with pytest.raises(UserError, match="'spam' is not known; choose one of auto, xformers, sdpa, chunked"):
        select_attention(CPU, torch.float32, 8, "spam")


def test_an_override_that_does_not_work_is_told_and_not_replaced():
    with pytest.raises(UserError, match="'broken' does not work here: it fails with RuntimeError"):
        select(Backend("broken", failing), good("works"), override="broken")


def test_no_backend_at_all_is_told():
    with pytest.raises(UserError, match="No attention backend works on cpu"):
        select(Backend("broken", failing))


def test_the_real_backends_on_this_machine(monkeypatch):
    monkeypatch.undo()
    choice = select_attention(CPU, torch.float32, 32)

    assert choice.name in {"sdpa", "chunked"}
    assert [backend.name for backend in BACKENDS] == ["xformers", "sdpa", "chunked"]
    assert choice.refused.keys() == {"xformers"}
