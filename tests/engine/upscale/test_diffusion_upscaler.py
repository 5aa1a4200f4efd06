"""The x4 upscaler against diffusers' own pipeline, in tiles, and where it appears."""

import dataclasses
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image

from webui.checkpoints.hash import ModelHashes
from webui.checkpoints.scan import CheckpointFolder
from webui.core.catalogue import BUILT_IN_UPSCALERS, VAE_OWN
from webui.core.errors import UpscalerNotFound
from webui.core.geometry import Size
from webui.core.ports import CheckpointInfo
from webui.core.requests import DiffusionUpscaler, Txt2Img, Upscale
from webui.engine.img2img import walk_of
from webui.engine.passes import make_pass
from webui.engine.upscale.diffusion import DiffusionEnlarger, noise_levels, upscale_by_diffusion
from webui.engine.workshop import Workshop
from webui.settings.schema import Settings

WISH = DiffusionUpscaler(prompt="a cat", negative_prompt="blurred", steps=3, cfg_scale=4.0, noise_level=30, seed=5)
SCHEDULE = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}


@pytest.fixture(scope="module")
def small_picture():
    generator = np.random.default_rng(2)
    return Image.fromarray(generator.integers(0, 256, (5, 4, 3), dtype=np.uint8)).resize((16, 20))


@pytest.fixture(scope="module")
def x4(diffusers, tiny):
    """A `LoadedCheckpoint` like the published one: 7 channels in, a label, an autoencoder of a quarter of the side."""
    scheduler = diffusers.DDIMScheduler(**SCHEDULE)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        unet = diffusers.UNet2DConditionModel(**{**tiny.unet.config, "in_channels": 7, "num_class_embeds": 1000})
        blocks = {
            "block_out_channels": [8] * 3,
            "down_block_types": ["DownEncoderBlock2D"] * 3,
            "up_block_types": ["UpDecoderBlock2D"] * 3,
        }
        vae = diffusers.AutoencoderKL(**{**tiny.vae.config, **blocks, "scaling_factor": 0.08333})
    return dataclasses.replace(
        tiny,
        family="x4-upscaler",
        input="low_res",
        scaling_factor=0.08333,
        alphas_cumprod=scheduler.alphas_cumprod.double(),
        unet=unet.eval().requires_grad_(False),
        vae=vae.eval().requires_grad_(False),
    )


@pytest.fixture
def x4_bench(bench, x4):
    return dataclasses.replace(bench, checkpoint=x4, weights="x4")


def words(bench):
    asked = Txt2Img(prompt=WISH.prompt, negative_prompt=WISH.negative_prompt, steps=WISH.steps)
    return make_pass(asked, bench, walk_of(asked)).words()


def finished(going):
    """How often it yields, and what it returns."""
    yields = 0
    while True:
        try:
            next(going)
        except StopIteration as end:
            return yields, end.value
        yields += 1


@torch.inference_mode()
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_it_makes_what_diffusers_makes(diffusers, x4, x4_bench, small_picture):
    from webui.engine.pixels import to_pixels

    plan = words(x4_bench)
    pipeline = diffusers.StableDiffusionUpscalePipeline(
        vae=x4.vae,
        text_encoder=None,
        tokenizer=None,
        unet=x4.unet,
        low_res_scheduler=diffusers.DDPMScheduler(**SCHEDULE),
        scheduler=diffusers.DDIMScheduler(
            **SCHEDULE, prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False, steps_offset=1
        ),
    )
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        image=small_picture,
        prompt_embeds=plan.at(0).prompts[0].conditioning.states,
        negative_prompt_embeds=plan.at(0).negative.states,
        num_inference_steps=WISH.steps,
        guidance_scale=WISH.cfg_scale,
        noise_level=WISH.noise_level,
        generator=torch.Generator().manual_seed(WISH.seed),
        output_type="pt",
    ).images

    steps, ours = finished(upscale_by_diffusion(x4_bench, plan, to_pixels(small_picture), WISH, tile=0, overlap=0))

    assert steps == WISH.steps
    assert ours.shape == (1, 3, 80, 64)
    # The same float32 arithmetic in another order: ours walks in sigma, diffusers in alpha.
    assert ((ours / 2 + 0.5).clamp(0, 1) - theirs).abs().max() <= 1e-4


def test_the_walk_visits_the_timesteps_of_diffusers(diffusers, x4):
    scheduler = diffusers.DDIMScheduler(**SCHEDULE, steps_offset=1)
    for steps in (1, 7, 20, 150):
        scheduler.set_timesteps(steps)
        timesteps, sigmas = noise_levels(x4.alphas_cumprod, steps)
        assert timesteps == scheduler.timesteps.tolist()
        assert len(sigmas) == steps + 1
        assert sigmas == sorted(sigmas, reverse=True)


@pytest.fixture
def enlarger(x4_bench):
    @contextmanager
    def lay_out():
        yield x4_bench

    def enlarger(**tiles):
        return DiffusionEnlarger(lay_out, words, WISH, **tiles)

    return enlarger


def test_it_reaches_any_size_and_counts_its_steps(enlarger, small_picture):
    for target, passes in ((Size(40, 50), 1), (Size(64, 80), 1), (Size(8, 10), 0)):
        upscaler = enlarger(tile=0, overlap=0)
        steps, made = finished(upscaler.enlarge(small_picture, target))
        assert made.size == (target.width, target.height)
        assert steps == upscaler.steps(Size(16, 20), target) == max(1, passes * WISH.steps)


def test_tiles_make_nearly_the_same_picture(enlarger, small_picture):
    target = Size(64, 80)
    whole = finished(enlarger(tile=0, overlap=0).enlarge(small_picture, target))[1]
    alike = finished(enlarger(tile=20, overlap=8).enlarge(small_picture, target))[1]
    tiles = finished(enlarger(tile=12, overlap=8).enlarge(small_picture, target))[1]

    assert alike.tobytes() == whole.tobytes()
    assert tiles.tobytes() != whole.tobytes()


def test_the_label_counts(x4_bench, small_picture, enlarger):
    one = finished(enlarger(tile=0, overlap=0).enlarge(small_picture, Size(64, 80)))[1]
    louder = dataclasses.replace(WISH, noise_level=300)
    plan = words(x4_bench)

    @contextmanager
    def lay_out():
        yield x4_bench

    other = finished(
        DiffusionEnlarger(lay_out, lambda _: plan, louder, tile=0, overlap=0).enlarge(small_picture, Size(64, 80))
    )[1]
    assert one.tobytes() != other.tobytes()


def test_such_checkpoints_are_among_the_upscalers(tmp_path, monkeypatch, x4_bench, small_picture):
    folder = CheckpointFolder(tmp_path)
    found = [
        CheckpointInfo(name=name, family=family, native_size=Size(512, 512))
        for name, family in (("painter", "sd1"), ("upscaler/x4", "x4-upscaler"))
    ]
    monkeypatch.setattr(folder, "_usable", lambda: iter(found))
    workshop = Workshop(folder, Settings, ModelHashes())
    asked = []

    @contextmanager
    def bench(request, **_):
        asked.append(request)
        yield x4_bench

    monkeypatch.setattr(workshop, "bench", bench)

    assert folder.upscalers() == (*BUILT_IN_UPSCALERS, "upscaler/x4")
    upscaler = workshop.enlarger("upscaler/x4", Upscale(image=b"", tile=32, overlap=8, diffusion=WISH))
    assert finished(upscaler.enlarge(small_picture, Size(64, 80)))[1].size == (64, 80)
    assert [(each.checkpoint, each.prompt, each.vae, each.width) for each in asked] == [
        ("upscaler/x4", "a cat", VAE_OWN, 256)
    ]
    with pytest.raises(UpscalerNotFound, match="upscaler/x4"):
        workshop.enlarger("painter")
