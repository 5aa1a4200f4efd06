"""Files that are upscalers, of the architectures that people have many of, and files that are not."""

import importlib

import pytest
import torch
from safetensors.torch import load_file, save_file

from webui.core.errors import UnsupportedModel
from webui.core.geometry import Size
from webui.engine.upscale import TiledNetwork, enlarge, load_upscaler

CPU = torch.device("cpu")
WINDOWED = {"embed_dim": 32, "num_heads": [2], "upsampler": "pixelshuffle"}
# Name, class in spandrel, what makes it small, how much larger it makes pictures.
ARCHITECTURES = [
    ("ESRGAN", "ESRGAN", {"num_filters": 4, "num_blocks": 1, "scale": 4}, 4),
    ("ESRGAN", "ESRGAN", {"in_nc": 3, "num_filters": 4, "num_blocks": 1, "scale": 2, "shuffle_factor": 2}, 2),
    ("SwinIR", "SwinIR", {**WINDOWED, "depths": [1], "window_size": 4, "upscale": 2}, 2),
    ("DAT", "DAT", {**WINDOWED, "depth": [1], "split_size": [2, 4], "upscale": 2}, 2),
    ("HAT", "HAT", {**WINDOWED, "depths": [1], "window_size": 4, "upscale": 2, "squeeze_factor": 4}, 2),
    ("SCUNet", "SCUNet", {"config": [1] * 7, "dim": 64}, 1),
    ("SPAN", "SPAN", {"num_in_ch": 3, "num_out_ch": 3, "feature_channels": 8, "upscale": 2, "norm": False}, 2),
    ("Compact", "Compact", {"num_in_ch": 1, "num_out_ch": 1, "num_feat": 8, "num_conv": 1, "upscale": 2}, 2),
]


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemError('ran')",))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """``written(room, name, options)``: a file of a spandrel network with random weights."""
    from webui.hardware import torchvision_operators

    torchvision_operators.declare()

    def write(room, name, options):
        network = getattr(importlib.import_module(f"spandrel.architectures.{room}"), name)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            state = network(**options).state_dict()
        path = tmp_path_factory.mktemp("architectures") / f"{room}.safetensors"
        save_file({name: weight.clone().contiguous() for name, weight in state.items()}, path)
        return path

    return write


@pytest.mark.filterwarnings("ignore:torch.meshgrid")  # SwinIR's own code
@pytest.mark.parametrize(("room", "name", "options", "scale"), ARCHITECTURES)
def test_each_architecture_enlarges_pictures_of_any_size_in_tiles(written, smooth_picture, room, name, options, scale):
    network = load_upscaler(written(room, name, options), CPU)
    assert network.scale == scale
    upscaler = TiledNetwork(network, tile=32, overlap=8)
    target = Size(37 * scale, 29 * scale)
    assert enlarge(smooth_picture(37, 29), target, upscaler, say=pytest.fail).size == (target.width, target.height)


def test_a_network_for_grey_pictures_sees_the_colours_one_by_one(written):
    network = load_upscaler(written(*ARCHITECTURES[-1][:3]), CPU)
    pixels = torch.rand(1, 3, 12, 10, generator=torch.Generator().manual_seed(0))
    made = network.run(pixels)
    assert made.shape == (1, 3, 24, 20)
    grey = pixels[:, 1:2].repeat(1, 3, 1, 1)
    torch.testing.assert_close(network.run(grey)[:, :1], made[:, 1:2])


def test_networks_for_other_channels_are_refused(written):
    options = {"num_in_ch": 4, "num_out_ch": 4, "num_feat": 8, "num_conv": 1}
    with pytest.raises(UnsupportedModel, match=r"Compact\.safetensors takes 4 channels and gives 4"):
        load_upscaler(written("Compact", "Compact", options), CPU)


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (object(), "needs a mask"),  # a model that is none for pictures alone
        ("FaceSR", "restores faces and not whole pictures"),
    ],
)
def test_networks_that_are_no_upscalers_are_refused(written, monkeypatch, found, sentence):
    # Real ones have tens of millions of weights: what spandrel would find stands in for them.
    file = written(*ARCHITECTURES[-1][:3])
    if found == "FaceSR":
        found = load_upscaler(file, CPU).model
        monkeypatch.setattr(type(found), "purpose", "FaceSR")
    monkeypatch.setattr("spandrel.ModelLoader.load_from_state_dict", lambda *_: found)
    with pytest.raises(UnsupportedModel, match=rf"Compact\.safetensors .*{sentence}"):
        load_upscaler(file, CPU)


def test_half_precision_gives_way_where_it_overflows(compact_file, smooth_picture):
    # Half precision is for graphics cards; here the CPU stands in for one.
    network = load_upscaler(compact_file, CPU, dtype=torch.float16)
    weights = network.model.model.body[0].weight
    pixels = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    exact = load_upscaler(compact_file, CPU)

    torch.testing.assert_close(network.run(pixels), exact.run(pixels), atol=0.01, rtol=0)  # 10 bits of each number
    assert network.dtype == torch.float16

    # As one that is too large for half precision, and then not: what overflows is infinity less infinity.
    def overflowing(module, given, made):
        return made * float("nan") if made.dtype == torch.float16 else made

    with network.model.model.body[0].register_forward_hook(overflowing):
        notices = []
        picture = smooth_picture(20, 20)
        made = enlarge(picture, Size(40, 40), TiledNetwork(network, tile=32, overlap=8), say=notices.append)
    assert weights.dtype == torch.float32
    assert notices == ["The upscaler compact overflowed in half precision; it goes on in full."]
    assert made.size == (40, 40)


def test_architectures_that_need_full_precision_keep_it(written):
    assert load_upscaler(written(*ARCHITECTURES[3][:3]), CPU, dtype=torch.float16).dtype == torch.float32


def test_a_pickle_that_wants_to_run_something_is_refused(tmp_path):
    torch.save({"x": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(UnsupportedModel, match=r"evil\.pth"):
        load_upscaler(tmp_path / "evil.pth", CPU)


def test_a_pickle_of_tensors_is_read(compact_file, tmp_path):
    torch.save({"params": load_file(compact_file)}, tmp_path / "compact.pth")
    assert load_upscaler(tmp_path / "compact.pth", CPU).scale == 2


def test_what_is_no_upscaler_is_named(tmp_path):
    save_file({"weight": torch.zeros(3)}, tmp_path / "odd.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"x" * 100)
    (tmp_path / "broken.pth").write_bytes(b"x" * 100)
    for name in ("odd.safetensors", "broken.safetensors", "broken.pth"):
        with pytest.raises(UnsupportedModel, match=name):
            load_upscaler(tmp_path / name, CPU)
