"""Each kind of LoRA against the program that defines it: LyCORIS's own modules, and PEFT's, on layers of a few numbers.

The references compute a layer's output with their change in it; ours changes the weight. Tolerance 1e-4 relative: both
are float32 and sum in different orders.
"""

import pytest
import torch
from torch import nn

from webui.checkpoints.lora.kinds import Parts, kind_of
from webui.checkpoints.lora.names import read_key


@pytest.fixture(scope="module", autouse=True)
def libraries():
    from webui.hardware import torchvision_operators

    torchvision_operators.declare()


def linear():
    return nn.Linear(24, 16, bias=False), torch.randn(5, 24)


def conv():
    return nn.Conv2d(8, 16, 3, padding=1, bias=False), torch.randn(2, 8, 6, 6)


def lycoris(algorithm, layer, **options):
    from lycoris.modules.diag_oft import DiagOFTModule
    from lycoris.modules.full import FullModule
    from lycoris.modules.ia3 import IA3Module
    from lycoris.modules.locon import LoConModule
    from lycoris.modules.loha import LohaModule
    from lycoris.modules.lokr import LokrModule

    modules = {
        "lora": LoConModule,
        "loha": LohaModule,
        "lokr": LokrModule,
        "ia3": IA3Module,
        "oft": DiagOFTModule,
        "full": FullModule,
    }
    module = modules[algorithm]("lora_unet_layer", layer, **options)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module.eval()


def stored(module):
    """The module's tensors as its file holds them, read by us."""
    if module.name == "full":
        return Parts(tensors={"diff": module.weight})
    names = module.weight_list
    tensors = module.custom_state_dict() or {
        name: value for name, value in module.state_dict().items() if name in names
    }
    parts = {read_key(f"lora_unet_layer.{name}").name: tensor.detach() for name, tensor in tensors.items()}
    alpha = parts.pop("alpha", None)
    if bool(parts.pop("on_input", torch.tensor(0))):
        parts["inputs"] = parts.pop("outputs")
    return Parts(tensors=parts, alpha=None if alpha is None else float(alpha))


def patched_output(layer, x, parts):
    delta = kind_of(frozenset(parts.tensors)).delta(parts, layer.weight)
    assert delta.shape == layer.weight.shape
    return torch.func.functional_call(layer, {"weight": layer.weight + delta}, (x,))


def assert_close(ours, reference):
    assert (ours - reference).norm() <= 1e-4 * reference.norm()


CASES = [
    ("lora", linear, {"lora_dim": 4, "alpha": 2}),
    ("lora", conv, {"lora_dim": 4, "alpha": 8}),
    ("lora", conv, {"lora_dim": 4, "alpha": 2, "use_tucker": True}),
    ("lora", linear, {"lora_dim": 4, "alpha": 2, "weight_decompose": True}),
    ("lora", conv, {"lora_dim": 4, "alpha": 2, "weight_decompose": True}),
    ("lora", conv, {"lora_dim": 4, "alpha": 2, "weight_decompose": True, "wd_on_out": False}),
    ("loha", linear, {"lora_dim": 4, "alpha": 2}),
    ("loha", conv, {"lora_dim": 4, "alpha": 2}),
    ("loha", conv, {"lora_dim": 4, "alpha": 2, "use_tucker": True}),
    ("loha", linear, {"lora_dim": 4, "alpha": 2, "weight_decompose": True}),
    ("lokr", linear, {"lora_dim": 2, "alpha": 1, "factor": 4}),
    ("lokr", linear, {"lora_dim": 1, "alpha": 2, "factor": 4, "decompose_both": True}),
    ("lokr", linear, {"lora_dim": 64, "alpha": 2, "factor": 4}),
    ("lokr", conv, {"lora_dim": 1, "alpha": 2, "factor": 4}),
    ("lokr", conv, {"lora_dim": 1, "alpha": 2, "factor": 4, "use_tucker": True}),
    ("lokr", linear, {"lora_dim": 2, "alpha": 2, "factor": 4, "weight_decompose": True}),
    ("ia3", linear, {}),
    ("ia3", linear, {"train_on_input": True}),
    ("ia3", conv, {}),
    ("ia3", conv, {"train_on_input": True}),
    ("oft", linear, {"lora_dim": 4}),
    ("oft", conv, {"lora_dim": 4}),
    ("oft", linear, {"lora_dim": 4, "constraint": 0.01}),
    ("oft", linear, {"lora_dim": 4, "rescaled": True}),
    ("full", linear, {}),
    ("full", conv, {}),
]


@pytest.mark.parametrize(("algorithm", "make", "options"), CASES)
def test_equals_lycoris(algorithm, make, options):
    torch.manual_seed(0)
    layer, x = make()
    module = lycoris(algorithm, layer, **options)
    with torch.no_grad():
        reference = module(x)
        assert (reference - layer(x)).norm() > 1e-2 * reference.norm(), "the change is too small to tell"
        assert_close(patched_output(layer, x, stored(module)), reference)
