"""Forming pictures: by colours, and by a small decoder read from a file in TAESD's layout."""

import contextlib
import io

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from webui.checkpoints.families.base import LatentToRgb
from webui.checkpoints.preview_decoder import find_preview_decoder, load_preview_decoder
from webui.core.errors import UnsupportedModel
from webui.engine import previews
from webui.engine.previews import LONGEST_SIDE, by_colours, by_decoder, latents_to_jpeg, preview_of
from webui.hardware import torchvision_operators

MAPPING = LatentToRgb(weights=((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.0, 0.0, 0.0)), bias=(0, 0, 0))


def opened(jpeg: bytes) -> Image.Image:
    return Image.open(io.BytesIO(jpeg))


@pytest.fixture(scope="module")
def tiny():
    """diffusers' own small decoder with random weights."""
    torchvision_operators.declare()
    from diffusers.models.autoencoders.vae import DecoderTiny

    torch.manual_seed(0)
    return DecoderTiny(
        in_channels=4,
        out_channels=3,
        num_blocks=(2, 1, 1, 1),
        block_out_channels=(8, 8, 8, 8),
        upsampling_scaling_factor=2,
        act_fn="relu",
        upsample_fn="nearest",
    ).eval()


@pytest.fixture
def models(tmp_path, tiny):
    """A models folder that holds the decoder as TAESD's authors count its layers."""
    folder = tmp_path / "VAE-approx"
    folder.mkdir()
    state = {}
    for name, weight in tiny.state_dict().items():
        _, layer, rest = name.split(".", 2)
        state[f"{int(layer) + 1}.{rest}"] = weight.contiguous()
    save_file(state, folder / "taesd_decoder.safetensors")
    torch.save(state, folder / "taesdxl_decoder.pth")
    return tmp_path


def test_each_latent_pixel_becomes_its_colour():
    latents = torch.zeros(2, 4, 8, 8)
    latents[0, 0], latents[1, 2] = 1.0, 1.0
    image = opened(latents_to_jpeg(latents, by_colours(MAPPING)))
    assert image.size == (128, 64)
    red, blue = image.getpixel((20, 32)), image.getpixel((108, 32))
    assert red[0] > 200 > 160 > red[2]
    assert blue[2] > 200 > 160 > blue[0]


@pytest.mark.parametrize(("family", "name"), [("sd1", "taesd_decoder.safetensors"), ("sdxl", "taesdxl_decoder.pth")])
def test_a_decoder_from_a_file_decodes_as_the_one_that_was_stored(models, tiny, family, name):
    path = find_preview_decoder(models, "some/checkpoint", family)
    assert path is not None
    assert path.name == name
    decoder = load_preview_decoder(path, device=torch.device("cpu"), dtype=torch.float32)
    latents = torch.randn(1, 4, 5, 7, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert torch.allclose(decoder(latents), tiny(latents), atol=1e-5)


def test_a_checkpoints_own_decoder_comes_first(models):
    own = models / "VAE-approx" / "painter_decoder.safetensors"
    own.write_bytes((models / "VAE-approx" / "taesd_decoder.safetensors").read_bytes())
    assert find_preview_decoder(models, "mine/painter", "sd1") == own


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("StableDiffusion3Pipeline", "taesd3_decoder"),
        ("FluxPipeline", "taef1_decoder"),
        ("ChromaPipeline", "taef1_decoder"),
        ("ZImagePipeline", "taef1_decoder"),
        ("PixArtSigmaPipeline", "taesdxl_decoder"),
        ("Flux2Pipeline", None),
        ("SanaPipeline", None),
    ],
)
def test_pipelines_have_the_decoder_of_their_latents(family, name, tmp_path):
    (tmp_path / "VAE-approx").mkdir()
    for stem in ("taesd", "taesdxl", "taesd3", "taef1"):
        (tmp_path / "VAE-approx" / f"{stem}_decoder.safetensors").touch()
    path = find_preview_decoder(tmp_path, "painter", family)

    assert (path and path.stem) == name


def test_there_may_be_none(tmp_path):
    assert find_preview_decoder(tmp_path, "painter", "sd1") is None
    assert preview_of(torch.zeros(1, 4, 8, 8), None) is None


@pytest.mark.parametrize(("height", "width"), [(8, 8), (100, 60)])
def test_a_decoders_preview_is_never_larger_than_is_shown(tiny, height, width):
    image = opened(latents_to_jpeg(torch.zeros(1, 4, height, width), by_decoder(tiny)))
    assert max(image.size) == min(LONGEST_SIDE, 8 * max(height, width))
    assert abs(image.width / image.height - width / height) < 0.05


def test_other_files_are_refused_by_name(tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "taesd_decoder.safetensors")
    with pytest.raises(UnsupportedModel, match=r"taesd_decoder\.safetensors is no preview decoder"):
        load_preview_decoder(tmp_path / "taesd_decoder.safetensors", device=torch.device("cpu"), dtype=torch.float32)


def test_on_a_card_a_preview_has_a_stream_of_its_own(monkeypatch):
    """Stand-ins for CUDA's streams and events say what happens in which order."""
    said = []

    class Event:
        def record(self, stream):
            said.append(f"latents are there on {stream}")

    class Stream:
        def __init__(self, device):
            self.device = device

        def wait_event(self, event):
            assert isinstance(event, Event)
            said.append("side waits")

    @contextlib.contextmanager
    def on(stream):
        assert isinstance(stream, Stream)
        said.append("side begins")
        yield
        said.append("side ends")

    class OnCard(torch.Tensor):
        device = torch.device("cuda", 0)

        def record_stream(self, stream):
            said.append("side reads")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: "the loop's")
    previews._side_stream.cache_clear()
    try:
        preview = preview_of(torch.zeros(1, 4, 8, 8).as_subclass(OnCard), by_colours(MAPPING))
        assert said == ["latents are there on the loop's"]
        assert opened(preview()).size == (64, 64)
        assert said[1:] == ["side waits", "side reads", "side begins", "side ends"]
        assert previews._side_stream(OnCard.device) is previews._side_stream(OnCard.device)
    finally:
        previews._side_stream.cache_clear()
