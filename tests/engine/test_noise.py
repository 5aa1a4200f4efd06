"""Noise: known answers of the card's generator, streams that do not depend on the batch, A1111's variation rules."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from webui.core.requests import NoiseSource, Txt2Img, Variation, alone
from webui.engine.noise import Noise, laid_over, open_stream, settled_source, slerp
from webui.engine.philox import PhiloxStream, philox4x32

CPU = torch.device("cpu")
SHAPE = (4, 12, 10)
SOURCES = (NoiseSource.CPU, NoiseSource.GPU, NoiseSource.NV)


def noise(request: Txt2Img, shape=SHAPE, count: int = 1) -> Noise:
    return Noise([alone(request, index) for index in range(count)], shape, CPU)


# ------------------------------------------------------------------------------------------------------- the card's


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_known_answers(counter, key, words):
    """The vectors for philox4x32-10 that come with Random123, the software of Salmon et al. 2011."""
    made = philox4x32(np.array(counter, np.uint64).reshape(4, 1), key)
    assert tuple(int(word) for word in made[:, 0]) == words


def test_the_stream_is_that_of_torch_on_a_card():
    """The widely published ``torch.manual_seed(0); torch.randn(3, 4, device="cuda")``.

    Cards take the sine by a fast approximation with an absolute error near 2⁻²¹, times a radius of at most 7.
    """
    published = [
        [-0.92466259, -0.42534415, -2.6438457, 0.14518388],
        [-0.12086647, -0.57972564, -0.62285122, -0.32838709],
        [-1.07454231, -0.36314407, -1.67105067, 2.26550497],
    ]
    np.testing.assert_allclose(PhiloxStream(0).randn((3, 4)), published, atol=3e-6, rtol=0)


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.version.hip is not None, reason="there is no NVIDIA card to compare with"
)
@pytest.mark.parametrize("seed", [0, 1234, 2**32 - 1, 2**40 + 3])
def test_the_stream_is_that_of_this_card(seed):
    generator, philox = torch.Generator("cuda").manual_seed(seed), PhiloxStream(seed)
    for shape in ((4, 64, 64), (3, 5), (4, 128, 128)):
        wanted = torch.randn(shape, generator=generator, device="cuda").cpu().numpy()
        np.testing.assert_allclose(philox.randn(shape), wanted, atol=5e-6, rtol=0)


def test_the_transform_never_meets_the_logarithm_of_zero_or_of_more_than_one():
    from webui.engine.philox import box_muller

    corners = np.array([0, 1, 2**31, 2**32 - 1], np.uint64)
    made = box_muller(np.repeat(corners, 4), np.tile(corners, 4))
    assert np.isfinite(made).all()
    assert np.abs(made).max() < math.sqrt(2 * 33 * math.log(2))


def test_the_card_s_noise_is_normal_and_each_seed_has_its_own():
    made = PhiloxStream(5).randn((200_000,))
    assert abs(made.mean()) < 0.01
    assert abs(made.std() - 1) < 0.01
    assert abs((made**4).mean() - 3) < 0.1  # kurtosis
    assert not np.allclose(made[:100], PhiloxStream(5 + 2**32).randn((100,)))


def test_gpu_means_nv_except_on_an_nvidia_card(monkeypatch):
    assert settled_source(NoiseSource.GPU, CPU) is NoiseSource.NV
    assert settled_source(NoiseSource.GPU, torch.device("mps")) is NoiseSource.NV
    assert settled_source(NoiseSource.CPU, torch.device("cuda")) is NoiseSource.CPU
    monkeypatch.setattr(torch.version, "hip", None)
    assert settled_source(NoiseSource.GPU, torch.device("cuda")) is NoiseSource.GPU
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert settled_source(NoiseSource.GPU, torch.device("cuda")) is NoiseSource.NV


# ---------------------------------------------------------------------------------------------------------- streams


def test_the_cpu_s_noise_is_torch_s():
    generator = torch.Generator().manual_seed(3)
    made = noise(Txt2Img(seed=3))
    for draw in (made.start, *[lambda: made(1.0, 0.5)] * 2):
        assert torch.equal(draw()[0], torch.randn(SHAPE, generator=generator))


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("strength", [0.0, 0.3])
@pytest.mark.parametrize("delta", [0, 31337])
def test_a_picture_draws_the_same_alone_and_in_a_batch(source, strength, delta):
    request = Txt2Img(
        seed=9,
        noise_source=source,
        eta_noise_seed_delta=delta,
        variation=Variation(seed=4, strength=strength, width=64),
    )
    together = noise(request, count=3)
    alone_each = [Noise([alone(request, index)], SHAPE, CPU) for index in range(3)]
    for row, single in zip(together.start(), alone_each, strict=True):
        assert torch.equal(row, single.start()[0])
    for row, single in zip(together(2.0, 1.0), alone_each, strict=True):
        assert torch.equal(row, single(2.0, 1.0)[0])


def test_seeds_count_up_and_under_a_variation_its_seeds_do():
    plain = Txt2Img(seed=9, variation=Variation(seed=4))
    varied = Txt2Img(seed=9, variation=Variation(seed=4, strength=0.5))
    assert [(alone(plain, i).seed, alone(plain, i).variation.seed) for i in range(3)] == [(9, 4), (10, 4), (11, 4)]
    assert [(alone(varied, i).seed, alone(varied, i).variation.seed) for i in range(3)] == [(9, 4), (9, 5), (9, 6)]
    assert noise(plain, count=3).seeds == [9, 10, 11]


@pytest.mark.parametrize("source", SOURCES)
def test_ensd_moves_the_samplers_noise_and_not_the_start(source):
    plain = noise(Txt2Img(seed=9, noise_source=source))
    moved = noise(Txt2Img(seed=9, noise_source=source, eta_noise_seed_delta=100))
    assert torch.equal(plain.start(), moved.start())
    stream = open_stream(109, source, CPU)
    for _ in range(2):
        assert torch.equal(moved(2.0, 1.0)[0], stream(SHAPE))
    assert not torch.equal(plain(2.0, 1.0), moved(2.0, 1.0))


# --------------------------------------------------------------------------------------------------------- variation


def test_strength_zero_leaves_the_noise_alone_and_strength_one_gives_the_other_seed_s():
    base, other = noise(Txt2Img(seed=1)).start(), noise(Txt2Img(seed=2)).start()
    for strength, wanted in ((0.0, base), (1.0, other)):
        made = noise(Txt2Img(seed=1, variation=Variation(seed=2, strength=strength))).start()
        torch.testing.assert_close(made, wanted, rtol=0, atol=1e-5)
    assert torch.equal(noise(Txt2Img(seed=1, variation=Variation(seed=2))).start(), base)
    same = noise(Txt2Img(seed=1, variation=Variation(seed=1, strength=0.5))).start()
    torch.testing.assert_close(same, base, rtol=0, atol=1e-6)


def test_slerp_keeps_lengths_and_turns_evenly():
    angle = torch.tensor(1.2)
    start = torch.tensor([1.0, 0.0]).reshape(1, 2, 1)
    end = torch.stack([angle.cos(), angle.sin()]).reshape(1, 2, 1)
    for share in (0.0, 0.25, 0.7, 1.0):
        wanted = torch.stack([(share * angle).cos(), (share * angle).sin()]).reshape(1, 2, 1)
        torch.testing.assert_close(slerp(start, end, share), wanted)


def test_the_angle_is_that_of_columns():
    start, end = noise(Txt2Img(seed=1)).start()[0], noise(Txt2Img(seed=2)).start()[0]
    made = slerp(start, end, 0.3)
    for channel in range(4):
        for column in range(3):
            a, b = start[channel, :, column].double(), end[channel, :, column].double()
            omega = torch.acos((a / a.norm()) @ (b / b.norm()))
            wanted = (torch.sin(0.7 * omega) * a + torch.sin(0.3 * omega) * b) / torch.sin(omega)
            torch.testing.assert_close(made[channel, :, column].double(), wanted, rtol=1e-4, atol=1e-5)


def test_the_sampler_s_noise_goes_on_as_without_a_variation():
    plain, varied = noise(Txt2Img(seed=1)), noise(Txt2Img(seed=1, variation=Variation(seed=2, strength=0.5)))
    assert not torch.equal(plain.start(), varied.start())
    assert torch.equal(plain(2.0, 1.0), varied(2.0, 1.0))


def test_noise_of_another_size_lies_in_the_middle():
    request = Txt2Img(seed=1, variation=Variation(width=48, height=64))
    made = noise(request).start()[0]
    small = noise(Txt2Img(seed=1), (4, 8, 6)).start()[0]
    whole = noise(Txt2Img(seed=1)).start()[0]
    assert torch.equal(made[:, 2:10, 2:8], small)
    assert torch.equal(made[:, :2], whole[:, :2])
    assert torch.equal(made[:, :, 8:], whole[:, :, 8:])


@pytest.mark.parametrize(("other", "inside"), [((16, 14), (slice(2, 14), slice(2, 12))), ((4, 14), None)])
def test_noise_of_a_larger_size_is_cut_about_its_middle(other, inside):
    part = torch.arange(4 * other[0] * other[1], dtype=torch.float32).reshape(4, *other)
    made = laid_over(torch.full(SHAPE, -1.0), part)
    if inside is not None:
        assert torch.equal(made, part[:, inside[0], inside[1]])
    else:
        assert torch.equal(made[:, 4:8], part[:, :, 2:12])
        assert bool((made[:, :4] == -1).all())


def test_the_size_of_the_first_drawing_also_holds_for_the_variation():
    variation = Variation(seed=2, strength=1.0, width=48, height=64)
    made = noise(Txt2Img(seed=1, variation=variation)).start()[0]
    small = noise(Txt2Img(seed=2), (4, 8, 6)).start()[0]
    torch.testing.assert_close(made[:, 2:10, 2:8], small, rtol=0, atol=1e-5)
    plain = dataclasses.replace(variation, strength=0.0)
    assert not torch.equal(noise(Txt2Img(seed=1, variation=plain)).start()[0], made)
