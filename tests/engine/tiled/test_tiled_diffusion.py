"""Denoising in tiles: every place counted once in all, nothing changed where a tile holds everything."""

import dataclasses

import pytest
import torch

from webui.core.errors import InvalidRequest
from webui.core.events import ImageReady
from webui.core.requests import Extras, TileBlend, TiledDiffusion, Txt2Img
from webui.core.validation import validate
from webui.engine.extras.perturbed_attention import perturbed
from webui.engine.tiled import diffusion
from webui.engine.tiled.diffusion import TiledUNet, in_tiles, tiles_of, weights_of

METHODS = [TileBlend.MULTIDIFFUSION, TileBlend.MIXTURE]
TIME = torch.tensor([500.0])
TEXT = torch.zeros(2, 77, 16)


class Pointwise:
    """A UNet that looks at each place alone: the first four channels, told the last, the text and a label."""

    mid_block = None

    def __init__(self):
        self.seen = []

    def parameters(self):
        return iter([torch.zeros(1)])

    def __call__(self, sample, timestep, states, *, return_dict, **conditions):
        self.seen.append(tuple(sample.shape))
        assert len(states) == len(sample)
        told = states[:, 0, 0] + sum(each[:, 0] for each in conditions.get("added_cond_kwargs", {}).values())
        return (sample[:, :4] * timestep / 3 + sample[:, -1:] + told[:, None, None, None],)


@pytest.fixture
def latents():
    return torch.randn(2, 5, 23, 37, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("tile", "overlap"), [(8, 0), (8, 3), (10, 5), (16, 8), (30, 4)])
def test_a_pointwise_network_answers_the_same_in_tiles(latents, method, tile, overlap):
    states = torch.stack([TEXT[0], TEXT[1] + 1])
    told = {"added_cond_kwargs": {"text_embeds": torch.tensor([[1.0], [2.0]])}}
    unet = Pointwise()

    made = TiledUNet(unet, method, tile, overlap)(latents, TIME, states, **told)[0]

    assert torch.equal(made, Pointwise()(latents, TIME, states, return_dict=False, **told)[0])
    assert len(unet.seen) > 1
    assert all(height <= tile and width <= tile for _, _, height, width in unet.seen)


@pytest.mark.parametrize("method", METHODS)
def test_several_tiles_may_go_at_once(latents, method, monkeypatch):
    unet = Pointwise()
    tiled = TiledUNet(unet, method, 16, 4)
    monkeypatch.setattr(tiled, "_at_once", lambda _: 4)
    states = torch.stack([TEXT[0], TEXT[1] + 1])

    made = tiled(latents, TIME, states)[0]

    assert torch.equal(made, Pointwise()(latents, TIME, states, return_dict=False)[0])
    assert [shape[0] for shape in unet.seen] == [8, 4]


@pytest.mark.parametrize(
    ("height", "width", "tile", "overlap"), [(23, 37, 8, 3), (8, 8, 8, 4), (9, 64, 16, 8), (5, 33, 8, 0)]
)
def test_every_place_lies_in_a_tile(height, width, tile, overlap):
    covered = torch.zeros(height, width)
    for each in tiles_of(height, width, tile, overlap):
        part = each.of(covered)
        part += 1
    assert covered.min() == 1 or (covered >= 1).all()


def test_where_tiles_disagree_the_mean_counts_them_by_weight():
    class Numbering(Pointwise):
        def __call__(self, sample, *_, **__):
            self.seen.append(sample.shape)
            return (torch.full((1, 4, *sample.shape[2:]), float(len(self.seen))),)

    latents = torch.zeros(1, 4, 8, 12)
    plain = TiledUNet(Numbering(), TileBlend.MULTIDIFFUSION, 8, 4)(latents, TIME, TEXT[:1])[0]
    bells = TiledUNet(Numbering(), TileBlend.MIXTURE, 8, 4)(latents, TIME, TEXT[:1])[0]

    assert plain[0, 0, 0].tolist() == [1, 1, 1, 1, 1.5, 1.5, 1.5, 1.5, 2, 2, 2, 2]
    bell = weights_of(TileBlend.MIXTURE, 8, 8)[0]
    shared = (bell[4:] + 2 * bell[:4]) / (bell[4:] + bell[:4])
    torch.testing.assert_close(bells[0, 0, 0, 4:8], shared)
    assert bells[0, 0, 0].diff().min() >= 0  # from the one tile's to the other's, without a step back


@pytest.mark.parametrize("method", METHODS)
def test_weights_are_a_bell_above_zero(method):
    weights = weights_of(method, 9, 128)
    assert weights.min() > 0
    torch.testing.assert_close(weights, weights.flip(0, 1))


def picture(events):
    return next(event.image for event in events if isinstance(event, ImageReady)).tobytes()


ASKED = Txt2Img(prompt="x", steps=2, width=128, height=64, seed=5, sampler="Euler")


@pytest.mark.parametrize("method", METHODS)
def test_a_tile_as_large_as_the_picture_changes_no_bit(run, method):
    # Made without `validate`, whose least tile is larger than pictures of a test.
    whole = dataclasses.replace(ASKED, tiled=TiledDiffusion(method=method, tile=128, overlap=0))
    cut = dataclasses.replace(ASKED, tiled=TiledDiffusion(method=method, tile=64, overlap=32))

    assert picture(run(whole)) == picture(run(ASKED))
    assert picture(run(cut)) != picture(run(ASKED))


def test_off_is_the_network_itself(tiny):
    assert in_tiles(tiny.unet, TiledDiffusion()) is tiny.unet


@pytest.mark.parametrize(
    "extras", [Extras(pag_scale=2.0), Extras(token_merging=0.5), Extras(freeu_b2=1.2), Extras(mimic_scale=3.0)]
)
def test_extras_work_in_tiles(run, extras):
    cut = dataclasses.replace(ASKED, tiled=TiledDiffusion(method=TileBlend.MIXTURE, tile=64, overlap=32))
    assert picture(run(dataclasses.replace(cut, extras=extras))) != picture(run(cut))


def test_the_network_is_perturbed_through_the_tiles(tiny):
    tiled = in_tiles(tiny.unet, TiledDiffusion(method=TileBlend.MIXTURE))
    before = tiny.unet.mid_block.attentions[0].transformer_blocks[0].attn1.processor
    with perturbed(tiled):
        assert tiny.unet.mid_block.attentions[0].transformer_blocks[0].attn1.processor is not before


@pytest.mark.parametrize("extras", [Extras(sag_scale=1.0), Extras(tiling=True)])
def test_what_needs_the_whole_picture_is_refused(extras):
    with pytest.raises(InvalidRequest, match="denoises it in tiles"):
        validate(Txt2Img(extras=extras, tiled=TiledDiffusion(method=TileBlend.MIXTURE), width=1024, height=1024))


def test_tiles_at_once_are_what_half_of_the_free_memory_holds(tiny, monkeypatch):
    monkeypatch.setattr(diffusion, "free_bytes", lambda _: 2**31)
    tiled = TiledUNet(tiny.unet, TileBlend.MIXTURE, 32, 8)
    # 128 MiB and 2 KiB for each of 256² pixels, twice for float32: 512 MiB a tile of prompt and negative prompt.
    assert tiled._at_once(torch.empty(2, 4, 8, 8, device="meta")) == 2
    assert tiled._at_once(torch.empty(2, 4, 8, 8)) == 1


@torch.inference_mode()
def test_after_the_first_step_nothing_is_measured_or_brought_to_a_card_again(monkeypatch):
    """Another count of tiles would be another shape, to compile, to record; and a copy waits for the card."""
    free, asked = 2**40, []
    monkeypatch.setattr(diffusion, "free_bytes", lambda _: free)
    monkeypatch.setattr(diffusion, "weights_of", lambda *given: asked.append(given) or weights_of(*given))
    unet = torch.nn.Conv2d(4, 4, 1, device="meta")
    shapes = []

    def ask(sample, _timestep, _states, *, return_dict):
        shapes.append(tuple(sample.shape))
        return (unet(sample),)

    ask.parameters = unet.parameters
    tiled = TiledUNet(ask, TileBlend.MIXTURE, 8, 4)
    x, states = torch.empty(1, 4, 24, 24, device="meta"), torch.empty(1, 77, 16, device="meta")
    tiled(x, TIME, states)
    first = list(shapes)
    free = 0
    tiled(x, TIME, states)
    assert shapes == first * 2
    assert len(asked) == 1
