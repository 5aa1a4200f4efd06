"""Weights that come to a device in groups. There is none here: the CPU stands in for it, and copies are watched."""

import itertools

import pytest
import torch
from torch import nn

from webui.engine import streaming
from webui.engine.streaming import streamed
from webui.hardware.low_bits import FORMATS, pack_weights

CPU = torch.device("cpu")
INPUT = torch.linspace(-1, 1, 8).reshape(2, 4)
ONE_LAYER = 80  # bytes: a layer of 4 × 4 weights and 4 biases in float32


@pytest.fixture
def network():
    """Three layers of one size in a list that nobody calls, and a block of two small ones."""

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
            self.block = nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2))
            self.scale = nn.Parameter(torch.tensor([2.0, 3.0]))

        def forward(self, x, *, skip=None):
            for number, layer in enumerate(self.layers):
                x = x if number == skip else layer(x).relu()
            return self.block(x) * self.scale

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Network().eval().requires_grad_(False)


@pytest.fixture
def copies(monkeypatch):
    """Which buffer each copy went to, and how many bytes it was."""
    made = []
    real = streaming._Lane.copy

    def copy(self, target, source, slot):
        made.append((slot, source.nbytes))
        real(self, target, source, slot)

    monkeypatch.setattr(streaming._Lane, "copy", copy)
    return made


def pointers(network):
    return [tensor.data_ptr() for tensor in (*network.parameters(), *network.buffers())]


@torch.inference_mode()
def test_the_result_is_the_same_and_the_weights_are_back_in_between(network, copies):
    expected = network(INPUT)
    with streamed(network, CPU, group_bytes=ONE_LAYER):
        waiting = pointers(network)
        assert copies == []
        for _ in range(2):
            assert torch.equal(network(INPUT), expected)
            assert pointers(network) == waiting
    assert torch.equal(network(INPUT), expected)


@torch.inference_mode()
def test_the_next_group_is_on_its_way_while_one_works(network, copies):
    seen = []
    for layer in network.layers:
        layer.register_forward_hook(lambda *_: seen.append(len(copies)))
    with streamed(network, CPU, group_bytes=ONE_LAYER):
        network(INPUT)
        assert seen == [1, 2, 3]  # in what order they come is only known afterwards
        copies.clear()
        network(INPUT)
        network(INPUT)
    slots = [slot for slot, _ in copies]
    assert seen[3:6] == [2, 3, 4]
    assert all(first != second for first, second in itertools.pairwise(slots))


@torch.inference_mode()
def test_a_layer_that_is_left_out_once_breaks_nothing(network, copies):
    expected = [network(INPUT, skip=skip) for skip in (None, 1, 0, None)]
    with streamed(network, CPU, group_bytes=ONE_LAYER):
        for skip, wanted in zip((None, 1, 0, None), expected, strict=True):
            assert torch.equal(network(INPUT, skip=skip), wanted)


@torch.inference_mode()
def test_the_device_holds_two_groups_and_what_lies_between_them(network, monkeypatch):
    made = []
    real = torch.empty

    def empty(*shape, **options):
        if options.get("device") is not None:
            made.append(shape[0])
        return real(*shape, **options)

    monkeypatch.setattr(torch, "empty", empty)
    with streamed(network, CPU, group_bytes=ONE_LAYER):
        network(INPUT)
    assert len(made) == 2
    assert max(made) <= 7 * streaming._ALIGNMENT  # the block's seven small tensors


@torch.inference_mode()
def test_streaming_again_packs_nothing_again(network):
    with streamed(network, CPU, group_bytes=ONE_LAYER):
        packed = pointers(network)
    with streamed(network, CPU, group_bytes=ONE_LAYER):
        assert pointers(network) == packed


@torch.inference_mode()
def test_weights_that_change_between_two_blocks_are_the_ones_that_run(network):
    with streamed(network, CPU, group_bytes=ONE_LAYER):
        network(INPUT)
    with torch.inference_mode(False):
        network.layers[1].weight.mul_(0.5)  # as merging a LoRA does
    expected = network(INPUT)
    with streamed(network, CPU, group_bytes=ONE_LAYER):
        assert torch.equal(network(INPUT), expected)


@torch.inference_mode()
def test_a_part_that_is_called_by_itself_has_its_weights(network):
    expected = network.block[0](INPUT)
    with streamed(network, CPU, group_bytes=10**6):
        assert torch.equal(network.block[0](INPUT), expected)
        assert torch.equal(network(INPUT), network(INPUT))


@torch.inference_mode()
def test_a_layer_that_fails_has_its_weights_back_and_works_again(network):
    expected = network(INPUT)
    with streamed(network, CPU, group_bytes=ONE_LAYER):
        waiting = pointers(network)
        with pytest.raises(RuntimeError):
            network(torch.ones(2, 5))
        assert pointers(network) == waiting
        assert torch.equal(network(INPUT), expected)


def test_strides_and_dtypes_survive():
    layer = nn.Conv2d(8, 4, 3).to(memory_format=torch.channels_last).half()
    other = nn.Linear(3, 5)
    network = nn.Sequential(layer, other).requires_grad_(False)
    before = [weight.clone() for weight in network.parameters()]
    with streamed(network, CPU):
        assert layer.weight.is_contiguous(memory_format=torch.channels_last)
        assert all(torch.equal(got, kept) for got, kept in zip(network.parameters(), before, strict=True))
        assert [weight.dtype for weight in network.parameters()] == [torch.float16] * 2 + [torch.float32] * 2


def test_a_layer_alone_is_a_group(copies):
    layer = nn.Linear(4, 4).requires_grad_(False)
    with streamed(layer, CPU), torch.no_grad():
        layer(INPUT)
    assert len(copies) == 1


@torch.inference_mode()
def test_a_real_unet_streams_in_groups(tiny, copies):
    x, states = torch.randn(1, 4, 8, 8), torch.randn(1, 77, 16)
    timestep = torch.tensor([500.0])
    expected = tiny.unet(x, timestep, states, return_dict=False)[0]
    with streamed(tiny.unet, CPU, group_bytes=20_000):
        assert torch.equal(tiny.unet(x, timestep, encoder_hidden_states=states, return_dict=False)[0], expected)
    assert len(copies) > 4


@pytest.mark.parametrize("name", FORMATS)
@torch.inference_mode()
def test_weights_in_few_bits_travel_as_they_lie(name, copies):
    with torch.inference_mode(False):
        layers = nn.ModuleDict({f"block_{n}": nn.Linear(64, 64) for n in range(3)}).requires_grad_(False)
        network = nn.Sequential(*layers.values())
        dense = sum(weight.nbytes for weight in network.parameters())
        pack_weights(layers, name)
    x = torch.randn(2, 64)
    wanted = network(x)
    with streamed(network, CPU, group_bytes=5000):
        assert torch.equal(network(x), wanted)
    assert torch.equal(network(x), wanted)
    assert sum(size for _, size in copies) < dense / 3


@torch.inference_mode()
def test_compiled_layers_do_not_miss_the_hooks_that_bring_their_weights(network, copies):
    compiled = network.layers[0].forward  # code that was made when there were no hooks
    network.layers[0]._compiled_call_impl = compiled
    expected = network(INPUT)
    with streamed(network, CPU, group_bytes=ONE_LAYER):
        assert torch.equal(network(INPUT), expected)
    assert len(copies) == 4
    assert network.layers[0]._compiled_call_impl == compiled


@torch.inference_mode()
def test_a_weight_of_two_groups_stays_on_the_device(network, copies):
    """As the words of a T5 are those of its encoder."""
    with torch.inference_mode(False):
        network.layers[2].weight = network.layers[0].weight
        network.twin = network.layers[1]
    expected = network(INPUT)
    with streamed(network, CPU, group_bytes=ONE_LAYER):
        assert torch.equal(network(INPUT), expected)
    assert network.layers[2].weight is network.layers[0].weight
    biases = [size for _, size in copies if size == streaming._ALIGNMENT]  # all that two of the layers have left
    assert (len(biases), len(copies)) == (2, 3)


def test_page_locked_memory_is_filled(monkeypatch):
    taken = []
    real = torch.empty

    def empty(size, *, dtype, pin_memory=False):
        taken.append((size, pin_memory))
        return real(size, dtype=dtype)

    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(streaming, "_SLAB_BYTES", 256)
    slabs = streaming._Slabs(pinned=True)
    pieces = [slabs.take(size) for size in (160, 160, 96, 90, 300, 200)]
    assert [piece.nbytes for piece in pieces] == [160, 160, 96, 90, 300, 200]
    assert taken == [(256, True), (256, True), (512, True)]  # torch rounds 300 to 512: the rest of it holds the 200
    assert len({piece.data_ptr() for piece in pieces}) == 6
