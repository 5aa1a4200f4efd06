"""LCMs, which are told the CFG scale, against diffusers' pipeline for them."""

import dataclasses

import pytest
import torch

from webui.core.events import ImageReady
from webui.core.ports import Control
from webui.core.requests import Guidance, SamplerOptions, Txt2Img
from webui.engine.conditioning.words import Conditioning, PromptPlan, Until
from webui.engine.denoiser import NetworkDenoiser
from webui.engine.generate import generate
from webui.engine.guidance import Guided, scale_embedding
from webui.engine.samplers.few_step import lcm
from webui.engine.schedules import SigmaTable

WIDTH = 256


@pytest.fixture(scope="module")
def unet(diffusers, tiny):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        unet = diffusers.UNet2DConditionModel(**{**tiny.unet.config, "time_cond_proj_dim": WIDTH})
    return unet.eval().requires_grad_(False)


@pytest.fixture
def pipeline(diffusers, tiny, unet, betas):
    return diffusers.LatentConsistencyModelPipeline(
        vae=tiny.vae,
        text_encoder=tiny.text_encoders[0].module,
        tokenizer=None,
        unet=unet,
        scheduler=diffusers.LCMScheduler(**betas),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@pytest.mark.parametrize(("scale", "width"), [(8.5, 256), (1.0, 32), (3.3, 7)])
def test_the_embedding_is_diffusers(pipeline, scale, width):
    wanted = pipeline.get_guidance_scale_embedding(torch.tensor([scale - 1]), embedding_dim=width)
    # float32's sines of angles up to 7,500.
    assert (scale_embedding(scale, width) - wanted).abs().max() <= 1e-3


@torch.no_grad()
def test_a_walk_is_that_of_diffusers_pipeline(pipeline, unet, alphas_cumprod):
    """Its boundary condition is left out here, which changes a picture by 4e-8 of the noisy latents."""
    draw = torch.Generator().manual_seed(1)
    states, start = torch.randn(1, 77, 16, generator=draw), torch.randn(1, 4, 8, 8, generator=draw)
    pipeline.set_progress_bar_config(disable=True)
    wanted = pipeline(
        prompt_embeds=states,
        latents=start,
        num_inference_steps=4,
        guidance_scale=8.5,
        generator=torch.Generator().manual_seed(2),
        output_type="latent",
    ).images
    table = SigmaTable.from_alphas(alphas_cumprod.tolist())
    ratio = alphas_cumprod[pipeline.scheduler.timesteps]
    sigmas = [*((1 - ratio) / ratio).sqrt().tolist(), 0.0]
    plan = PromptPlan(prompts=(((Until(0, Conditioning(states=states)),), 1.0),), negative=(Until(0, None),))
    rows = []
    handle = unet.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    predict = Guided(unet, plan, cfg_scale=8.5, guidance=Guidance(), evaluations=4, scale_width=WIDTH)
    denoiser = NetworkDenoiser(predict, "epsilon", timestep=table.timestep, sigmas=sigmas, device=torch.device("cpu"))
    noise = torch.Generator().manual_seed(2)

    # The pipeline's latents have the variance of one; ours that of the noise level and of the picture together.
    x = start * (1 + sigmas[0] ** 2) ** 0.5
    *_, last = lcm(denoiser, x, sigmas, lambda *_: torch.randn(start.shape, generator=noise), SamplerOptions())
    got = last.x
    handle.remove()

    assert rows == [1, 1, 1, 1]
    assert (got - wanted).abs().max() <= 1e-4


def test_the_scale_changes_the_picture_and_the_negative_prompt_does_not(bench, tiny, unet):
    laid_out = dataclasses.replace(bench, checkpoint=dataclasses.replace(tiny, unet=unet))

    def picture(**values):
        request = Txt2Img(prompt="red", steps=2, width=64, height=64, seed=1, sampler="LCM", **values)
        events = generate(request, laid_out, control=Control())
        return next(event.image.tobytes() for event in events if isinstance(event, ImageReady))

    plain = picture(cfg_scale=8.0)
    assert picture(cfg_scale=8.0, negative_prompt="blue") == plain
    assert picture(cfg_scale=2.0) != plain
