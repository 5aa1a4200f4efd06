"""A network over a picture: no seams, good edges, and memory that runs out on the way."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from webui.core.errors import UserError
from webui.core.events import Notice
from webui.core.geometry import Size
from webui.engine.upscale import load_upscaler
from webui.engine.upscale.tiled import BORDER, TiledNetwork

SHIPPED = Path(__file__).parents[3] / "models/ESRGAN/realesr-animevideov3-x4.safetensors"


def finish(upscaler, picture, factor=2):
    """The picture, the number of steps and the sentences said on the way."""
    going = upscaler.enlarge(picture, Size(picture.width * factor, picture.height * factor))
    said = []
    while True:
        try:
            said.append(next(going))
        except StopIteration as end:
            notices = [event.text for event in said if isinstance(event, Notice)]
            return end.value, len(said) - len(notices), notices


def difference(one, other):
    return np.abs(np.asarray(one, int) - np.asarray(other, int))


def test_tiles_leave_no_seam(network, smooth_picture):
    # Three convolutions of 3 x 3 see 3 px far; a quarter of the overlap (4 px) is thrown away, so that only rounding
    # can differ: one level of 255.
    picture = smooth_picture(90, 70)
    whole, tiled = (finish(TiledNetwork(network, tile=tile, overlap=16), picture)[0] for tile in (0, 40))
    assert difference(whole, tiled).max() <= 1
    assert np.asarray(whole).std() > 5


def test_without_enough_overlap_there_would_be_a_seam(network, smooth_picture):
    picture = smooth_picture(60, 60)  # and twice ten mirrored pixels: two tiles of 40 that share nothing
    whole, tiled = (finish(TiledNetwork(network, tile=tile, overlap=0), picture)[0] for tile in (0, 40))
    assert difference(whole, tiled).max() > 1


def test_a_shipped_network_leaves_no_seam(smooth_picture):
    # Its 18 convolutions see farther than the overlap, so that tiles differ a little from the whole wherever they
    # lie; a seam would be a line of differences that stands out from the others.
    network = load_upscaler(SHIPPED, torch.device("cpu"))
    rng = np.random.default_rng(0)
    fine = np.asarray(smooth_picture(100, 72), int) + rng.integers(-30, 30, (72, 100, 3))
    picture = Image.fromarray(fine.clip(0, 255).astype(np.uint8))
    whole, tiled = (finish(TiledNetwork(network, tile=tile, overlap=16), picture, 4)[0] for tile in (0, 64))
    apart = difference(whole, tiled)
    assert apart.mean() < 0.1
    assert apart.mean(axis=(0, 2)).max() < 1
    assert apart.mean(axis=(1, 2)).max() < 1


def test_the_outermost_pixels_are_made_as_the_inner_ones(network, smooth_picture):
    # A picture that goes on as its mirror image beyond the edge is made alike on both sides of the cut.
    picture = smooth_picture(40, 30)
    mirrored = np.pad(np.asarray(picture), ((BORDER, BORDER), (BORDER, BORDER), (0, 0)), "reflect")
    larger = finish(TiledNetwork(network, tile=0, overlap=0), Image.fromarray(mirrored))[0]
    inner = larger.crop((2 * BORDER, 2 * BORDER, larger.width - 2 * BORDER, larger.height - 2 * BORDER))
    assert difference(inner, finish(TiledNetwork(network, tile=0, overlap=0), picture)[0]).max() == 0


@pytest.mark.parametrize("size", [(1, 1), (3, 40), (11, 9)])
def test_pictures_smaller_than_the_border_are_made(network, smooth_picture, size):
    made, _, _ = finish(TiledNetwork(network, tile=32, overlap=8), smooth_picture(*size))
    assert made.size == (2 * size[0], 2 * size[1])


@pytest.mark.parametrize(("tile", "factor"), [(40, 2), (40, 3), (0, 5), (64, 1)])
def test_the_steps_are_foretold(network, smooth_picture, tile, factor):
    picture = smooth_picture(90, 70)
    upscaler = TiledNetwork(network, tile=tile, overlap=8)
    foretold = upscaler.steps(Size(90, 70), Size(90 * factor, 70 * factor))
    made, steps, _ = finish(upscaler, picture, factor)
    assert steps == foretold
    assert made.size == (90 * factor, 70 * factor)


def test_a_picture_that_fits_into_one_tile_is_one(network):
    assert TiledNetwork(network, tile=64, overlap=16).steps(Size(64, 64), Size(128, 128)) == 1


def test_where_memory_runs_out_smaller_tiles_go_on_from_the_tile_that_failed(network, scripted, smooth_picture):
    def little_memory(pixels, model):
        if max(pixels.shape[2:]) > 40 and len(short.model.sizes) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return model(pixels)

    short = scripted(little_memory)
    picture = smooth_picture(120, 100)
    wanted = finish(TiledNetwork(network, tile=0, overlap=16), picture)[0]
    made, steps, notices = finish(TiledNetwork(short, tile=64, overlap=16), picture)

    assert difference(made, wanted).max() <= 1
    assert steps == TiledNetwork(network, tile=64, overlap=16).steps(Size(120, 100), Size(240, 200))
    sizes = short.model.sizes
    assert sizes[:3] == [(64, 64)] * 3  # two tiles are done, the third fails
    assert max(max(size) for size in sizes[3:]) == 32  # nothing as large is tried again
    assert notices == ["Memory ran out on a tile of 64 pixels; the upscale goes on in tiles of 32."]


def test_a_whole_picture_that_memory_does_not_hold_is_cut(scripted, smooth_picture):
    def little_memory(pixels, model):
        if pixels[0, 0].numel() > 50 * 50:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        return model(pixels)

    made, _, notices = finish(TiledNetwork(scripted(little_memory), tile=0, overlap=16), smooth_picture(120, 100))
    assert made.size == (240, 200)
    assert len(notices) == 2  # 140, 70, 35


def test_memory_that_holds_no_tile_fails_and_says_so(scripted, smooth_picture):
    def no_memory(pixels, model):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    empty = scripted(no_memory)
    with pytest.raises(torch.OutOfMemoryError):
        finish(TiledNetwork(empty, tile=0, overlap=16), smooth_picture(120, 100))
    assert [max(size) for size in empty.model.sizes] == [140, 70, 35, 32]


def test_other_failures_are_not_taken_for_want_of_memory(scripted, smooth_picture):
    def broken(pixels, model):
        raise RuntimeError("a kernel failed")

    network = scripted(broken)
    with pytest.raises(RuntimeError, match="a kernel failed"):
        finish(TiledNetwork(network, tile=0, overlap=16), smooth_picture(20, 20))
    assert len(network.model.sizes) == 1


def test_what_is_not_finite_is_never_made_a_picture(scripted, smooth_picture):
    network = scripted(lambda pixels, model: model(pixels) * float("nan"))
    with pytest.raises(UserError, match="not finite"):
        finish(TiledNetwork(network, tile=0, overlap=16), smooth_picture(20, 20))


def test_closing_it_ends_it(scripted, smooth_picture):
    network = scripted(lambda pixels, model: model(pixels))
    going = TiledNetwork(network, tile=40, overlap=8).enlarge(smooth_picture(120, 100), Size(240, 200))
    next(going)
    going.close()
    assert len(network.model.sizes) == 1
