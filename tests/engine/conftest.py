"""Tiny Stable Diffusion parts with random weights, and a folder that hands them out."""

import pytest
import torch


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Networks this small lose more by waking threads than they gain, above all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def diffusers():
    from webui.hardware import torchvision_operators

    torchvision_operators.declare()
    import diffusers

    return diffusers


@pytest.fixture(scope="session")
def make_depth_network(diffusers):
    """make_depth_network() gives a small depth network of random weights, without MiDaS' convolutions before it."""
    from transformers import DPTConfig, DPTForDepthEstimation

    config = DPTConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=24,
        image_size=64,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
    )
    return lambda: DPTForDepthEstimation(config).eval().requires_grad_(False)


@pytest.fixture(scope="session")
def betas():
    return {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}


@pytest.fixture(scope="session")
def alphas_cumprod():
    """Stable Diffusion 1's, float64."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0)


UNET = {
    "in_channels": 4,
    "out_channels": 4,
    "sample_size": 8,
    "block_out_channels": [16, 32],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": 1,
    "cross_attention_dim": 16,
    "attention_head_dim": 2,
    "norm_num_groups": 8,
}
VAE = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": [8, 8, 8, 8],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
TEXT = {
    "vocab_size": 49408,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 77,
    "projection_dim": 16,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
}


@pytest.fixture(scope="session")
def tiny(diffusers, alphas_cumprod):
    """A `LoadedCheckpoint` of a few thousand random weights (and CLIP's whole vocabulary)."""
    from transformers import CLIPTextConfig, CLIPTextModel

    from webui.checkpoints.loaded import LatentToRgb, LoadedCheckpoint, TextEncoder
    from webui.checkpoints.tokenizer import ClipTokenizer
    from webui.core.geometry import Size
    from webui.core.ports import CheckpointInfo

    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = diffusers.UNet2DConditionModel(**UNET).eval().requires_grad_(False)
        vae = diffusers.AutoencoderKL(**VAE).eval().requires_grad_(False)
        text_encoder = CLIPTextModel(CLIPTextConfig(**TEXT)).eval().requires_grad_(False)
    # CLIP's states have a mean, about a tenth of their deviation, which the emphasis rule rests on.
    torch.nn.init.constant_(text_encoder.final_layer_norm.bias, 0.1)
    return LoadedCheckpoint(
        info=CheckpointInfo(name="tiny", family="sd1", native_size=Size(64, 64)),
        family="sd1",
        prediction_type="v_prediction",
        alphas_cumprod=alphas_cumprod,
        zero_terminal_snr=False,
        conditioning="text",
        input="latents",
        text_encoders=(
            TextEncoder(
                name="clip_l",
                module=text_encoder,
                tokenizer=ClipTokenizer(),
                pad_token=ClipTokenizer.end_token,
                layer=1,
                final_norm=True,
                pooled=False,
            ),
        ),
        unet=unet,
        vae=vae,
        scaling_factor=0.5,
        latent_to_rgb=LatentToRgb(
            weights=((0.3, 0.2, 0.2), (0.2, 0.3, 0.2), (-0.2, 0.2, 0.3), (-0.2, -0.3, -0.5)), bias=(0.0, 0.1, -0.1)
        ),
        bytes_by_component={"unet": 1, "vae": 1, "text_encoder": 1},
    )


@pytest.fixture
def bench(tiny):
    from webui.engine.bench import Bench
    from webui.engine.previews import by_colours

    return Bench(
        checkpoint=tiny,
        weights="tiny",
        model_hash=lambda: "0123456789",
        device=torch.device("cpu"),
        attention="test",
        render=by_colours(tiny.latent_to_rgb),
    )


@pytest.fixture
def run(bench):
    """Runs a request to its end and returns its events."""
    from webui.core.ports import Control
    from webui.engine.generate import generate

    def run(request, **options):
        return list(generate(request, bench, control=Control(), **options))

    return run
