"""Within a step the host never asks the device for a number, which would make it wait for all work before it.

On the "meta" device there are no numbers: whatever reads one fails, as do copies to main memory. On a graphics card
torch itself can be told to fail at such a wait.
"""

import pytest
import torch
from torch import nn

from webui.core.requests import Guidance, SamplerOptions, ScheduleOptions
from webui.engine.conditioning.words import Conditioning, PromptPlan, Until
from webui.engine.denoiser import NetworkDenoiser
from webui.engine.guidance import Guided
from webui.engine.samplers import SAMPLERS
from webui.engine.schedules import SigmaTable, make_sigmas

META = torch.device("meta")
# It measures the error of each step to choose the next one's length: once a step it has to know a number.
MEASURES = {"DPM adaptive"}


@pytest.fixture(scope="module")
def unet(diffusers, tiny):
    with torch.device("meta"):
        return diffusers.UNet2DConditionModel.from_config(tiny.unet.config).eval().requires_grad_(False)


class Network(nn.Module):
    """Small enough for a walk of every sampler."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(4, 4, 1, device=META).requires_grad_(False)

    def forward(self, x, timestep, states, *, return_dict):
        return (self.layer(x) * timestep[0] + states.mean((1, 2))[:, None, None, None],)


def walk(name, unet, device, alphas_cumprod, *, split=False, **guidance):
    """A walk of four steps of sampler `name`; gives how many there were."""
    sampler = SAMPLERS[name]
    table = SigmaTable.from_alphas(alphas_cumprod.tolist(), is_xl=False)
    sigmas = make_sigmas("Automatic", table, 4, ScheduleOptions(), automatic=sampler.automatic)
    words = [Until(0, Conditioning(states=torch.zeros(1, 77, 16, device=device))) for _ in range(2)]
    plan = PromptPlan(prompts=(((words[0],), 1.0),), negative=(words[1],))
    predict = Guided(
        unet,
        plan,
        cfg_scale=7.0,
        guidance=Guidance(**guidance),
        evaluations=4,
        needs_negative=sampler.plus_plus,
        split=split,
    )
    denoiser = NetworkDenoiser(predict, "epsilon", timestep=table.timestep, sigmas=sigmas, device=device)

    def noise(_sigma, _sigma_next):
        return torch.zeros(1, 4, 8, 8, device=device)

    x = sampler.start(torch.zeros(1, 4, 8, 8, device=device), sigmas[0])
    with torch.inference_mode():
        return sum(1 for _ in sampler.run(denoiser, x, sigmas, noise, SamplerOptions()))


@pytest.mark.parametrize("name", sorted(SAMPLERS.keys() - MEASURES))
def test_no_sampler_waits_for_the_device(name, alphas_cumprod):
    assert walk(name, Network(), META, alphas_cumprod) >= 2


@pytest.mark.parametrize("options", [{"split": True}, {"rescale": 0.7}, {"skip_early": 0.5}], ids=str)
def test_no_way_of_guiding_waits_for_the_device(options, unet, alphas_cumprod):
    assert walk("Euler", unet, META, alphas_cumprod, **options) == 4


def test_the_check_would_see_it(alphas_cumprod):
    with pytest.raises((RuntimeError, NotImplementedError)):
        walk("DPM adaptive", Network(), META, alphas_cumprod)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a graphics card")
def test_torch_sees_no_wait_on_a_card(diffusers, tiny, alphas_cumprod):
    card = torch.device("cuda")
    real = diffusers.UNet2DConditionModel.from_config(tiny.unet.config).eval().requires_grad_(False).to(card)
    walk("Euler", real, card, alphas_cumprod)  # what is done once may wait
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        walk("DPM++ 2M", real, card, alphas_cumprod)
    finally:
        torch.cuda.set_sync_debug_mode(before)
