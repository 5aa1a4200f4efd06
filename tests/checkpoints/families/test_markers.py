import pytest

from webui.checkpoints.families import markers
from webui.checkpoints.header import Header, TensorHeader
from webui.core.errors import UnsupportedModel
from webui.core.geometry import Size

COMPVIS = """
model:
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    parameterization: "v"
    linear_start: 0.0001
    linear_end: 0.02
    scale_factor: 0.5
    unet_config:
      params: {num_head_channels: 32, model_channels: 64, channel_mult: [1, 2], image_size: 32}
"""
STABILITY = """
model:
  target: sgm.models.diffusion.DiffusionEngine
  params:
    denoiser_config:
      params:
        scaling_config:
          target: sgm.modules.diffusionmodules.denoiser_scaling.VScaling
    network_config:
      params: {num_heads: 4}
"""


def header(path, *tensors, **metadata):
    entries = {name: TensorHeader("F32", (0,)) for name in ("weight", *tensors)}
    return Header(
        path=path, tensors=entries, metadata={key.replace("__", "."): value for key, value in metadata.items()}
    )


@pytest.fixture
def model(tmp_path):
    return tmp_path / "some.model.safetensors"


def beside(model, text):
    model.with_suffix(".yaml").write_text(text, encoding="utf-8")


def test_a_compvis_configuration_beside_the_file_is_read(model):
    beside(model, COMPVIS)

    said = markers.read_sidecar(model)

    assert said == markers.Sidecar(
        prediction="v_prediction",
        scaling_factor=0.5,
        unet={"attention_head_dim": [2, 4]},
        scheduler={"beta_start": 0.0001, "beta_end": 0.02},
    )


def test_stabilitys_configuration_of_xl_is_read(model):
    beside(model, STABILITY)

    said = markers.read_sidecar(model)

    assert said == markers.Sidecar(
        prediction="v_prediction", scaling_factor=None, unet={"attention_head_dim": 4}, scheduler={}
    )


@pytest.mark.parametrize(
    "text",
    ["", "model: [", "model: 3", "model: {params: {}}", COMPVIS.replace('"v"', '"x0"'), "!!python/object:os.system {}"],
)
def test_what_is_no_configuration_is_told(model, text):
    beside(model, text)

    with pytest.raises(UnsupportedModel, match=r"^some\.model\.yaml beside some\.model\.safetensors is no config"):
        markers.read_sidecar(model)


def test_nothing_beside_says_nothing(model):
    assert markers.read_sidecar(model) is None


def test_the_file_beside_goes_before_the_metadata_and_that_before_marks(model):
    marked = header(model, "v_pred", modelspec__prediction_type="epsilon")
    assert markers.prediction_of(header(model), None) is None
    assert markers.prediction_of(header(model, "v_pred"), None) == "v_prediction"
    assert markers.prediction_of(marked, None) == "epsilon"

    beside(model, COMPVIS)

    assert markers.prediction_of(marked, markers.read_sidecar(model)) == "v_prediction"


def test_zero_terminal_snr_is_marked_by_noobai_and_by_kohya(model):
    assert not markers.zero_terminal_snr_of(header(model))
    assert markers.zero_terminal_snr_of(header(model, "ztsnr"))
    assert markers.zero_terminal_snr_of(header(model, ss_zero_terminal_snr="True"))


@pytest.mark.parametrize(("text", "size"), [("768x640", Size(768, 640)), ("0x5", None), ("big", None)])
def test_the_size_is_that_of_the_metadata(model, text, size):
    assert markers.size_of(header(model, modelspec__resolution=text)) == size
