"""Face restorer files: which are taken, what the others are told, and how CodeFormer's optional package comes in.

The real networks have hundreds of megabytes; a small one stands in for them under CodeFormer's name.
"""

import dataclasses
import io
import sys
import types
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from webui.checkpoints.scan import CheckpointFolder
from webui.core.errors import ModelNotFound, UnsupportedModel
from webui.core.events import ImageReady, Notice
from webui.core.ports import Control
from webui.core.requests import FaceRestoration, Upscale
from webui.engine.faces import load_face_network
from webui.engine.manager import EngineManager
from webui.settings.schema import Settings

CPU = torch.device("cpu")
PHOTO = Path(__file__).with_name("astronaut.jpg")
MARK = "idx_pred_layer.1.weight"


class Small(nn.Module):
    """One layer by CodeFormer's name, and its way of being called."""

    hyperparameters = types.MappingProxyType({})  # spandrel asks for it

    def __init__(self):
        super().__init__()
        self.idx_pred_layer = nn.Sequential(nn.Identity(), nn.Linear(3, 3, bias=False))

    def forward(self, x, weight=0.5, **options):
        return self.idx_pred_layer(x.movedim(1, -1)).movedim(-1, 1) * weight, None


@pytest.fixture
def codeformer(tmp_path):
    path = tmp_path / "codeformer.safetensors"
    save_file({MARK: torch.eye(3) * 0.5}, path)
    return path


@pytest.fixture
def package(monkeypatch):
    """What `spandrel_extra_arches` offers, with the small network in place of CodeFormer."""
    from webui.hardware import torchvision_operators

    torchvision_operators.declare()
    from spandrel import Architecture, ArchRegistry, ArchSupport, ImageModelDescriptor
    from spandrel.util import KeyCondition

    class SmallArch(Architecture[Small]):
        def __init__(self):
            super().__init__(id="CodeFormer", detect=KeyCondition.has_all(MARK))

        def load(self, state_dict):
            return ImageModelDescriptor(
                Small(),
                state_dict,
                architecture=self,
                purpose="FaceSR",
                tags=[],
                supports_half=False,
                supports_bfloat16=True,
                scale=1,
                input_channels=3,
                output_channels=3,
            )

    registry = ArchRegistry()
    registry.add(ArchSupport.from_architecture(SmallArch()))
    module = types.ModuleType("spandrel_extra_arches")
    module.EXTRA_REGISTRY = registry
    monkeypatch.setitem(sys.modules, "spandrel_extra_arches", module)


def test_codeformer_goes_by_its_package_and_its_weight(codeformer, package):
    network = load_face_network(codeformer, CPU)
    assert network.name == "codeformer"
    assert network.weight_bytes == 9 * 4
    face = torch.rand(1, 3, 8, 8)
    for weight in (0.25, 1.0):
        # 0…1 becomes -1…1, half of it is taken, by `weight`, and that becomes 0…1 again.
        torch.testing.assert_close(network.restore(face, weight), (face * 2 - 1) * 0.5 * weight / 2 + 0.5)


def test_without_the_package_a_sentence_names_it(codeformer, monkeypatch):
    monkeypatch.setitem(sys.modules, "spandrel_extra_arches", None)
    with pytest.raises(UnsupportedModel, match=r"non-commercial use.*pip install spandrel_extra_arches"):
        load_face_network(codeformer, CPU)


def test_a_damaged_gfpgan_and_other_networks_are_refused(tmp_path):
    cut = tmp_path / "GFPGANv1.4.safetensors"
    save_file({"toRGB.0.weight": torch.zeros(3), "stylegan_decoder.style_mlp.1.weight": torch.zeros(3)}, cut)
    # What GFPGAN takes is fixed, so building it whole is what loading a damaged one costs: spandrel is told not to.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("spandrel.architectures.GFPGAN.GFPGAN", lambda **sizes: nn.Linear(1, 1))
        with pytest.raises(UnsupportedModel, match=r"GFPGANv1\.4\.safetensors could not be loaded"):
            load_face_network(cut, CPU)

    strange = tmp_path / "strange.safetensors"
    save_file({"some.weight": torch.zeros(3)}, strange)
    with pytest.raises(UnsupportedModel, match=r"strange\.safetensors is neither GFPGAN nor CodeFormer"):
        load_face_network(strange, CPU)

    upscaler = tmp_path / "compact.safetensors"
    shapes = {"body.0": (8, 3), "body.2": (8, 8), "body.4": (12, 8)}
    weights = {f"{name}.weight": torch.zeros(*shape, 3, 3) for name, shape in shapes.items()}
    biases = {f"{name}.bias": torch.zeros(shape[0]) for name, shape in shapes.items()}
    slopes = {"body.1.weight": torch.zeros(8), "body.3.weight": torch.zeros(8)}
    save_file(weights | biases | slopes, upscaler)
    with pytest.raises(UnsupportedModel, match="neither GFPGAN nor CodeFormer"):
        load_face_network(upscaler, CPU)


def test_an_upscale_restores_with_the_model_that_it_names(tmp_path, codeformer, package):
    (tmp_path / "Codeformer").mkdir()
    codeformer.rename(tmp_path / "Codeformer" / codeformer.name)
    engine = EngineManager(CheckpointFolder(tmp_path), Settings)
    photo = io.BytesIO()
    Image.open(PHOTO).save(photo, "PNG")
    told = {}
    for name, data in {"face": photo.getvalue(), "none": blank()}.items():
        request = Upscale(image=data, upscaler="Lanczos", scale=1.0, faces=FaceRestoration(model="codeformer"))
        events = list(engine.generate(request, control=Control()))
        told[name] = [event.text for event in events if isinstance(event, Notice)]
        (made,) = (event.image for event in events if isinstance(event, ImageReady))
        changed = made.tobytes() != Image.open(io.BytesIO(data)).convert("RGB").tobytes()
        assert changed == (name == "face")
    assert told == {"face": [], "none": ["No face was found in the picture, so none was restored."]}

    with pytest.raises(ModelNotFound, match="'GFPGAN'; choose one of codeformer"):
        list(engine.generate(dataclasses.replace(request, faces=FaceRestoration(model="GFPGAN")), control=Control()))


def blank():
    """A picture without a face, as PNG."""
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), "teal").save(buffer, "PNG")
    return buffer.getvalue()
