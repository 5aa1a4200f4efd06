"""Recorded calls, with a stand-in for CUDA's graphs: it runs the same work again and overwrites what came of it."""

from __future__ import annotations

import logging
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from webui.hardware.graphs import MOST_SHAPES, WARM_UP_CALLS, CudaRecorder, recorded_bytes, set_recorded


class Network(nn.Module):
    """Says how often it really ran."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4).requires_grad_(False)
        self.runs = 0

    def forward(self, x, factor, *, added=None, return_dict=True):
        self.runs += 1
        y = self.layer(x) * factor
        return (y if added is None else y + added["shift"],) if not return_dict else y


class StandIn:
    """See `Recorder`; counts what was recorded and replayed."""

    held_bytes = 7

    def __init__(self):
        self.recorded = self.replayed = 0

    def __call__(self, work):
        self.recorded += 1
        outcome = work()

        def replay():
            self.replayed += 1
            outcome[0].copy_(work()[0])

        return outcome, replay


@pytest.fixture
def network():
    return Network()


@pytest.fixture
def recorder():
    return StandIn()


@torch.inference_mode()
def ask(network, rows=2, *, shift=1.0):
    return network(
        torch.full((rows, 4), 0.5), torch.tensor([2.0]), added={"shift": torch.full((4,), shift)}, return_dict=False
    )[0]


def test_after_the_first_calls_of_a_shape_a_recording_answers(network, recorder):
    wanted = [ask(network, shift=float(number)) for number in range(6)]
    set_recorded(network, wanted=True, recorder=lambda: recorder)
    got = [ask(network, shift=float(number)) for number in range(6)]
    assert all(torch.equal(one, other) for one, other in zip(got, wanted, strict=True))
    assert (recorder.recorded, recorder.replayed) == (1, 6 - WARM_UP_CALLS)
    assert len({answer.data_ptr() for answer in got}) == 6


def test_each_shape_has_its_own_and_old_ones_leave(network, recorder):
    set_recorded(network, wanted=True, recorder=lambda: recorder)
    for rows in range(1, MOST_SHAPES + 2):
        for _ in range(WARM_UP_CALLS + 2):
            assert ask(network, rows).shape == (rows, 4)
    assert recorder.recorded == MOST_SHAPES + 1
    ask(network, MOST_SHAPES)
    assert recorder.recorded == MOST_SHAPES + 1
    ask(network, 1)
    assert recorder.recorded == MOST_SHAPES + 2


def test_weights_changed_in_place_count_and_moved_ones_are_recorded_anew(network, recorder):
    def keep():
        set_recorded(network, wanted=True, kernels="sdpa", recorder=lambda: recorder)

    keep()
    for _ in range(WARM_UP_CALLS + 1):
        before = ask(network)
    network.layer.weight.mul_(2)  # as LoRAs are merged
    keep()
    after = ask(network)
    assert recorder.recorded == 1
    assert not torch.equal(after, before)
    network.layer.weight.data = network.layer.weight.clone()
    keep()
    for _ in range(WARM_UP_CALLS + 1):
        assert torch.equal(ask(network), after)
    assert recorder.recorded == 2
    set_recorded(network, wanted=True, kernels="xformers", recorder=lambda: recorder)
    for _ in range(WARM_UP_CALLS + 1):
        ask(network)
    assert recorder.recorded == 3


def test_other_arithmetic_is_recorded_anew(network, recorder, monkeypatch):
    for benchmark in (False, False, True):
        monkeypatch.setattr(torch.backends.cudnn, "benchmark", benchmark)
        set_recorded(network, wanted=True, recorder=lambda: recorder)
        for _ in range(WARM_UP_CALLS + 1):
            ask(network)
    assert recorder.recorded == 2


def test_what_cannot_be_recorded_runs_as_it_is_and_the_log_says_so(network, caplog):
    def refuse(_work):
        raise RuntimeError("operation not permitted when stream is capturing")

    set_recorded(network, wanted=True, recorder=lambda: refuse)
    with caplog.at_level(logging.WARNING):
        answers = [ask(network) for _ in range(WARM_UP_CALLS + 3)]
    assert all(torch.equal(answer, answers[0]) for answer in answers)
    assert [record.message.count("not permitted") for record in caplog.records] == [1]


def test_recordings_are_let_go(network, recorder):
    set_recorded(network, wanted=True, recorder=lambda: recorder)
    for _ in range(WARM_UP_CALLS + 1):
        ask(network)
    set_recorded(network, wanted=False)
    before = network.runs
    ask(network)
    assert (network.runs, recorder.recorded) == (before + 1, 1)


def test_what_recordings_keep_is_known_once_there_are_some(network, recorder):
    set_recorded(network, wanted=True, recorder=lambda: recorder)
    assert recorded_bytes(network) == 0
    for _ in range(WARM_UP_CALLS + 1):
        ask(network)
    assert recorded_bytes(network) == 7
    set_recorded(network, wanted=False)
    assert recorded_bytes(network) == 0


def test_a_recorder_keeps_what_its_own_pool_holds(monkeypatch):
    Card(monkeypatch)
    pieces = [{"segment_pool_id": pool, "total_size": size} for pool, size in (((0, 0), 1), ((0, 1), 2), ((0, 1), 4))]
    monkeypatch.setattr(torch.cuda, "memory_snapshot", lambda: pieces)
    assert CudaRecorder().held_bytes == 6


def test_a_network_that_moves_loses_its_recordings(network, recorder):
    from webui.engine.placement import move

    set_recorded(network, wanted=True, recorder=lambda: recorder)
    move(network, torch.device("meta"))
    assert network._compiled_call_impl is None


class Card:
    """Stands in for what `CudaRecorder` asks of torch: the stream that is current, and captures that are under way."""

    def __init__(self, monkeypatch, *, fails_at=None):
        self.stream, self.captures, self.ended = "default", [], False
        card, before = self, []

        class Graph:
            def pool(self):
                if not card.ended:
                    raise RuntimeError("without a preceding successful capture")

            def replay(self):
                pass

        class Capture:
            """As `torch.cuda.graph` has it: its stream is left by the last line of `__exit__` alone."""

            def __init__(self, graph, *, pool, capture_error_mode):
                self.pool = pool
                assert capture_error_mode == "thread_local"

            def __enter__(self):
                card.stream = "capture"
                if fails_at == "begin":
                    raise RuntimeError("cannot be begun")
                card.captures.append(self.pool)

            def __exit__(self, *_):
                if fails_at == "end":
                    raise RuntimeError("operation failed due to a previous error during capture")
                card.captures.remove(self.pool)
                card.ended = True
                card.stream = before[-1]

        @contextmanager
        def stream(new):
            before.append(card.stream)
            card.stream = new
            try:
                yield
            finally:
                card.stream = before.pop()

        def end(_device, pool):
            if pool not in card.captures:
                raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
            card.captures.remove(pool)

        self.released = []
        for name, value in {
            "graph_pool_handle": lambda: (0, 1),
            "CUDAGraph": Graph,
            "graph": Capture,
            "stream": stream,
            "current_stream": lambda: card.stream,
            "current_device": lambda: 0,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end, raising=False)
        monkeypatch.setattr(torch._C, "_cuda_releasePool", lambda _, pool: self.released.append(pool), raising=False)


@pytest.mark.parametrize("fails_at", [None, "begin", "end"])
def test_a_capture_that_fails_leaves_neither_its_stream_nor_a_capture_behind(monkeypatch, fails_at):
    card = Card(monkeypatch, fails_at=fails_at)
    recorder = CudaRecorder()
    if fails_at is None:
        assert recorder(lambda: 7)[0] == 7
    else:
        with pytest.raises(RuntimeError, match=r"begun|previous error"):
            recorder(lambda: 7)
    assert (card.stream, card.captures) == ("default", [])
    assert card.released == ([(0, 1)] if fails_at == "end" else [])


def test_work_that_fails_within_a_capture_leaves_its_pool_to_torch(monkeypatch):
    card = Card(monkeypatch)

    def work():
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        CudaRecorder()(work)
    assert (card.stream, card.captures, card.released) == ("default", [], [])
