"""Upscaling: seams, sizes, transparency, and files that are not upscalers."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from webui.core.errors import UnreadableImage, UnsupportedModel
from webui.core.events import Finished, ImageReady, Started, Step
from webui.core.ports import Control
from webui.core.requests import Upscale
from webui.engine.upscale import load_upscaler, upscale
from webui.engine.upscale.tiling import strips

CPU = torch.device("cpu")


def png(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def smooth_picture(width, height):
    rng = np.random.default_rng(4)
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="session")
def compact_file(tmp_path_factory):
    """A SRVGGNetCompact ×2 with random weights, in Real-ESRGAN's names: two convolutions and the way out."""
    generator = torch.Generator().manual_seed(0)
    features, scale = 8, 2
    state = {}
    for index, (inputs, outputs) in enumerate(((3, features), (features, features), (features, 3 * scale**2))):
        state[f"body.{index * 2}.weight"] = torch.randn(outputs, inputs, 3, 3, generator=generator) * 0.15
        state[f"body.{index * 2}.bias"] = torch.randn(outputs, generator=generator) * 0.05
        if index < 2:
            state[f"body.{index * 2 + 1}.weight"] = torch.full((outputs,), 0.2)
    path = tmp_path_factory.mktemp("upscalers") / "compact.safetensors"
    save_file(state, path)
    return path


@pytest.fixture(scope="session")
def network(compact_file):
    return load_upscaler(compact_file, CPU)


def run(network, **values):
    request = Upscale(**({"image": png(smooth_picture(90, 70)), "scale": 2.0} | values))
    return list(upscale(request, network, control=Control()))


def image_of(events):
    return next(event.image for event in events if isinstance(event, ImageReady))


@pytest.mark.parametrize("overlap", [0, 1, 8, 16])
@pytest.mark.parametrize("length", [20, 32, 33, 40, 63, 64, 100, 257])
@pytest.mark.parametrize("scale", [1, 2, 4])
def test_weights_sum_to_one_everywhere(length, overlap, scale):
    total = torch.zeros(length * scale)
    made = strips(length, 32, overlap, scale)
    for strip in made:
        assert strip.end - strip.start <= 32
        assert (strip.weights >= 0).all()
        total[strip.start * scale : strip.end * scale] += strip.weights
    torch.testing.assert_close(total, torch.ones_like(total))


def test_tiles_leave_no_seam(network):
    # Three convolutions of 3 × 3 see 3 px far; a quarter of the overlap (4 px) is thrown away, so that only rounding
    # can differ: one level of 255.
    whole, tiled = (np.asarray(image_of(run(network, tile=tile, overlap=16)), int) for tile in (0, 40))
    assert np.abs(whole - tiled).max() <= 1
    assert whole.std() > 5


def test_without_enough_overlap_there_would_be_a_seam(network):
    # 80 pixels in two tiles of 40: nothing is shared.
    picture = png(smooth_picture(80, 80))
    whole, tiled = (np.asarray(image_of(run(network, image=picture, tile=tile, overlap=0)), int) for tile in (0, 40))
    assert np.abs(whole - tiled).max() > 1


def test_the_events_of_a_tiled_upscale(network):
    events = run(network, tile=40, overlap=8)
    steps = [event for event in events if isinstance(event, Step)]
    assert events[0] == Started(total_images=1, total_steps=len(steps))
    assert len(steps) == 3 * 2
    assert [step.index for step in steps] == list(range(1, 7))
    assert isinstance(events[-1], Finished)


@pytest.mark.parametrize(("scale", "size"), [(2.0, (180, 140)), (1.5, (135, 105)), (4.0, (360, 280)), (1.0, (90, 70))])
def test_any_scale_is_reached(network, scale, size):
    assert image_of(run(network, scale=scale)).size == size
    assert image_of(run(None, scale=scale)).size == size


def test_the_filters_are_pillows():
    picture = smooth_picture(90, 70)
    for name, filter_ in (("Lanczos", Image.Resampling.LANCZOS), ("Nearest", Image.Resampling.NEAREST)):
        wanted = picture.resize((180, 140), filter_)
        assert image_of(run(None, upscaler=name)).tobytes() == wanted.tobytes()


@pytest.mark.parametrize("with_network", [True, False])
def test_transparency_is_kept(network, with_network):
    picture = smooth_picture(90, 70).convert("RGBA")
    picture.putalpha(Image.linear_gradient("L").resize((90, 70)))
    made = image_of(run(network if with_network else None, image=png(picture)))
    assert made.mode == "RGBA"
    wanted = picture.getchannel("A").resize((180, 140), Image.Resampling.LANCZOS)
    assert made.getchannel("A").tobytes() == wanted.tobytes()


def test_a_picture_keeps_what_it_said():
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("parameters", "a cat\nSteps: 20, Sampler: Euler, Seed: 1")
    events = run(None, image=png(smooth_picture(90, 70), pnginfo=info))
    text = next(event.infotext for event in events if isinstance(event, ImageReady))
    assert text.startswith("a cat\nSteps: 20, Sampler: Euler, Seed: 1, ")
    assert "Postprocess upscaler: Lanczos" in text


def test_skipping_leaves_no_picture(network):
    control = Control()
    request = Upscale(image=png(smooth_picture(90, 70)), tile=40, overlap=8)
    kinds = []
    for event in upscale(request, network, control=control):
        kinds.append(type(event))
        control.skip()
    assert kinds == [Started, Finished]


def test_an_unreadable_picture_is_named():
    with pytest.raises(UnreadableImage, match="picture to upscale"):
        run(None, image=b"nothing")


def test_what_is_no_upscaler_is_named(tmp_path):
    torch.manual_seed(0)
    save_file({"weight": torch.zeros(3)}, tmp_path / "odd.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"x" * 100)
    (tmp_path / "broken.pth").write_bytes(b"x" * 100)
    for name in ("odd.safetensors", "broken.safetensors", "broken.pth"):
        with pytest.raises(UnsupportedModel, match=name):
            load_upscaler(tmp_path / name, CPU)


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemError('ran')",))


def test_a_pickle_that_wants_to_run_something_is_refused(tmp_path):
    torch.save({"x": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(UnsupportedModel, match=r"evil\.pth"):
        load_upscaler(tmp_path / "evil.pth", CPU)


def test_a_pickle_of_tensors_is_read(compact_file, tmp_path):
    from safetensors.torch import load_file

    torch.save({"params": load_file(compact_file)}, tmp_path / "compact.pth")
    assert load_upscaler(tmp_path / "compact.pth", CPU).scale == 2
