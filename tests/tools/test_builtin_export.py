"""The export stage, from a training state with random weights."""

import pytest
import torch

from webui.checkpoints.load import load_checkpoint
from webui.checkpoints.scan import CheckpointFolder
from webui.hardware import torchvision_operators


@pytest.fixture(scope="module")
def exported(tmp_path_factory, pack):
    torchvision_operators.declare()
    from tools.builtin_model import export as stage
    from tools.builtin_model import networks

    preset = networks.PRESETS["small"]
    folder = tmp_path_factory.mktemp("state")
    models = tmp_path_factory.mktemp("models")
    (models / "Stable-diffusion").mkdir()
    modules = torch.nn.ModuleDict({"unet": networks.make_unet(preset), "text": networks.make_text_encoder(preset)})
    vae = networks.make_vae(preset)
    torch.save({"ema": modules.state_dict(), "step": 3}, folder / "unet.pt")
    torch.save({"ema": vae.state_dict()}, folder / "vae.pt")
    torch.save({"latents": torch.zeros(2, 4, 32, 32), "scaling_factor": 0.75}, folder / "latents-256.pt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "PICTURES_FOR_COLOURS", 8)
        stage.export(folder, pack, "small", models / "Stable-diffusion" / "atelier-sketchbook.safetensors")
    return models, modules, vae


def test_the_file_is_small_and_is_the_default(exported):
    catalogue = CheckpointFolder(exported[0])

    assert catalogue.checkpoint("").name == "atelier-sketchbook"
    assert str(catalogue.checkpoint("").native_size) == "256x256"
    assert catalogue.path("").stat().st_size <= 27e6
    assert [path.name for path in catalogue.path("").parent.iterdir()] == ["atelier-sketchbook.safetensors"]


def test_the_file_loads_to_the_trained_weights(exported):
    models, modules, vae = exported
    catalogue = CheckpointFolder(models)
    checkpoint = load_checkpoint(
        catalogue.path(""), catalogue.checkpoint(""), dtype=torch.float16, device=torch.device("cpu")
    )

    for got, wanted in (
        (checkpoint.unet, modules["unet"]),
        (checkpoint.text_encoders[0].module, modules["text"]),
        (checkpoint.vae, vae),
    ):
        state = got.state_dict()
        assert all(torch.equal(state[key], weight.half()) for key, weight in wanted.state_dict().items())
    assert checkpoint.prediction_type == "v_prediction"
    assert checkpoint.scaling_factor == 0.75
    assert checkpoint.latent_to_rgb is not None


def test_latent_colours_are_the_least_squares_fit():
    from tools.builtin_model.export import fit_latent_colours

    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(5, 4, 3, 2, generator=generator)
    weights, bias = torch.randn(4, 3, generator=generator), torch.randn(3, generator=generator)
    pictures = torch.einsum("nchw,cr->nrhw", latents, weights) + bias[:, None, None]

    fit = fit_latent_colours(latents, pictures)

    assert torch.allclose(torch.tensor(fit["weights"]), weights, atol=1e-4)
    assert torch.allclose(torch.tensor(fit["bias"]), bias, atol=1e-4)
