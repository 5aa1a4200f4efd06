"""LoRAs in a checkpoint's weights: equal to PEFT's, in every spelling, gone without a trace."""

import copy
import dataclasses

import gguf
import pytest
import torch
from safetensors.torch import save_file

from webui.checkpoints.lora.read import read_lora
from webui.checkpoints.lora.scan import LoraFile
from webui.core.errors import UnsupportedModel
from webui.engine.patches import WeightPatches, Wish
from webui.hardware.gguf_blocks import Blocks
from webui.hardware.graphs import RecordedCalls, set_recorded
from webui.hardware.low_bits import FORMATS, can_be_packed, keep_blocks, main_kind, pack_weights

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


@pytest.fixture(scope="module")
def own(tiny):
    """The tiny checkpoint with weights of its own, whose middle attention is in it twice as wide as its text."""
    return dataclasses.replace(
        tiny,
        unet=copy.deepcopy(tiny.unet),
        text_encoders=tuple(
            dataclasses.replace(each, module=copy.deepcopy(each.module)) for each in tiny.text_encoders
        ),
    )


@pytest.fixture(scope="module")
def patches(own):
    return WeightPatches(own)


@pytest.fixture(autouse=True)
def restored(patches):
    yield
    patches.restore()


@pytest.fixture
def write(tmp_path):
    """Writes tensors as a LoRA file and reads it."""

    def write(tensors, name="lora", metadata=None):
        path = tmp_path / f"{name}.safetensors"
        save_file({key: tensor.detach().contiguous() for key, tensor in tensors.items()}, path, metadata)
        state = path.stat()
        return read_lora(LoraFile(name=name, path=path, size=state.st_size, modified_ns=state.st_mtime_ns))

    return write


def wish(patches, lora, text=1.0, unet=1.0, rank=None):
    return Wish(file=lora.file, lora=patches.fit(lora), text_weight=text, unet_weight=unet, rank=rank)


def weights(checkpoint):
    modules = (checkpoint.unet, *(encoder.module for encoder in checkpoint.text_encoders))
    return {
        (number, name): weight.clone()
        for number, module in enumerate(modules)
        for name, weight in module.named_parameters()
    }


def same(first, second):
    return all(torch.equal(weight, second[name]) for name, weight in first.items())


def factors(seed, *, out=16, inputs=16, rank=4):
    generator = torch.Generator().manual_seed(seed)
    return {
        "lora_down.weight": torch.randn(rank, inputs, generator=generator),
        "lora_up.weight": torch.randn(out, rank, generator=generator),
        "alpha": torch.tensor(2.0),
    }


UNET_PATH = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
TEXT_PATH = "text_model.encoder.layers.0.self_attn.q_proj"
ORIGINAL_PATH = "input_blocks.1.1.transformer_blocks.0.attn1.to_q"


def kohya(seed, *, unet=UNET_PATH, text=TEXT_PATH):
    paths = [f"lora_unet_{unet.replace('.', '_')}", f"lora_te_{text.replace('.', '_')}"]
    return {f"{path}.{name}": tensor for path in paths for name, tensor in factors(seed).items()}


def network_output(checkpoint):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(1, 4, 8, 8, generator=generator)
    text = checkpoint.text_encoders[0].module(input_ids=torch.arange(77)[None]).last_hidden_state
    return checkpoint.unet(x, 500, encoder_hidden_states=text).sample


# ------------------------------------------------------------------------------------------------------------- parity


@pytest.mark.parametrize("dora", [False, True], ids=["LoRA", "DoRA"])
@torch.no_grad()
def test_equals_peft_with_its_own_keys(own, patches, write, dora):
    """Through UNet and text encoder; linear layers and convolutions; PEFT's state as diffusers saves it, with alpha."""
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    torch.manual_seed(0)
    reference = dataclasses.replace(
        own,
        unet=copy.deepcopy(own.unet),
        text_encoders=(dataclasses.replace(own.text_encoders[0], module=copy.deepcopy(own.text_encoders[0].module)),),
    )
    unet, text = reference.unet, reference.text_encoders[0].module
    unet.add_adapter(LoraConfig(r=4, lora_alpha=6, target_modules=[*ATTENTION, "conv1", "proj_in"], use_dora=dora))
    text.add_adapter(LoraConfig(r=4, lora_alpha=2, target_modules=["q_proj", "fc1"], use_dora=dora))
    tensors = {}
    for prefix, module in (("unet", unet), ("text_encoder", text)):
        for name, parameter in module.named_parameters():
            if "lora_A" in name or "lora_B" in name:
                parameter.data.normal_(std=0.2)
            if "magnitude" in name:
                parameter.data.mul_(torch.rand_like(parameter) + 0.5)
        state = convert_state_dict_to_diffusers(get_peft_model_state_dict(module))
        tensors |= {f"{prefix}.{name}": tensor for name, tensor in state.items()}
    metadata = {"lora_adapter_metadata": '{"unet.r": 4, "unet.lora_alpha": 6, "text_encoder.lora_alpha": 2}'}
    expected, before = network_output(reference), network_output(own)
    patches.apply([wish(patches, write(tensors, metadata=metadata))])
    ours = network_output(own)
    assert (expected - before).norm() > 1e-2 * expected.norm()
    assert (ours - expected).norm() <= 1e-4 * expected.norm()


@pytest.mark.parametrize(
    "spelling",
    [
        lambda name: f"lora_unet_{ORIGINAL_PATH.replace('.', '_')}.{name}",
        lambda name: f"lycoris_unet_{UNET_PATH.replace('.', '_')}.{name}",
        lambda name: f"unet.{UNET_PATH}.{name}",
        lambda name: f"unet.{UNET_PATH}.{name.replace('lora_up', 'lora_B').replace('lora_down', 'lora_A')}",
        lambda name: f"unet.{UNET_PATH}.{name.replace('lora_', 'lora.')}",
        lambda name: "unet." + UNET_PATH.replace("to_q", "processor.to_q") + f"_{name.replace('lora_', 'lora.')}",
        lambda name: f"base_model.model.{UNET_PATH}.{name.replace('lora_up', 'lora_B').replace('lora_down', 'lora_A')}",
        lambda name: f"diffusion_model.{ORIGINAL_PATH}.{name}",
    ],
)
def test_all_spellings_mean_the_same(own, patches, write, spelling):
    tensors = factors(1) | {"alpha": torch.tensor(4.0)}  # the rank, which is what no alpha means
    plain = {f"lora_unet_{UNET_PATH.replace('.', '_')}.{name}": tensor for name, tensor in tensors.items()}
    patches.apply([wish(patches, write(plain, "plain"))])
    expected = weights(own)
    patches.restore()
    spelt = {spelling(name): tensor for name, tensor in tensors.items() if name != "alpha"}
    patches.apply([wish(patches, write(spelt, "spelt"))])
    assert same(weights(own), expected)


def test_a_rank_is_cut_and_strengths_are_linear(own, patches, write):
    lora = write(kohya(1))
    weight = own.unet.get_parameter(f"{UNET_PATH}.weight")
    before = weight.clone()
    patches.apply([wish(patches, lora, rank=1, unet=2.0)])
    tensors = factors(1)
    expected = 2.0 * tensors["lora_up.weight"][:, :1] @ tensors["lora_down.weight"][:1] * (2.0 / 4)
    torch.testing.assert_close(weight - before, expected, rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------------------------------- coming and going


def test_restored_bit_for_bit_after_several(own, patches, write):
    before = weights(own)
    first, second = write(kohya(1), "first"), write(kohya(2), "second")
    patches.apply([wish(patches, first, 0.7, -0.3), wish(patches, second, 1.3, 0.9)])
    assert not same(weights(own), before)
    patches.apply([wish(patches, second, 0.1, 0.2)])
    patches.restore()
    assert same(weights(own), before)
    assert patches.kept_bytes == 0


def test_half_precision_comes_back_too(own, write):
    half = dataclasses.replace(
        own,
        unet=copy.deepcopy(own.unet).half(),
        text_encoders=(
            dataclasses.replace(own.text_encoders[0], module=copy.deepcopy(own.text_encoders[0].module).half()),
        ),
    )
    patches = WeightPatches(half)
    before = weights(half)
    patches.apply([wish(patches, write(kohya(1)))])
    assert not same(weights(half), before)
    patches.restore()
    assert same(weights(half), before)


def test_what_is_in_the_weights_does_not_depend_on_what_was(own, patches, write):
    first, second = write(kohya(1), "first"), write(kohya(2), "second")
    patches.apply([wish(patches, first, 0.7), wish(patches, second, 0.4)])
    expected = weights(own)
    patches.apply([wish(patches, second, 1.0, 2.0)])
    patches.apply([wish(patches, second, 0.4), wish(patches, first, 0.7)])
    assert same(weights(own), expected)


def test_only_what_changed_is_touched(own, patches, write):
    unet, text = (
        own.unet.get_parameter(f"{UNET_PATH}.weight"),
        own.text_encoders[0].module.get_parameter(f"{TEXT_PATH.removeprefix('text_model.')}.weight"),
    )
    lora = write(kohya(1))
    patches.apply([wish(patches, lora, 0.5, 0.5)])
    versions = unet._version, text._version
    patches.apply([wish(patches, lora, 0.5, 0.5)])
    assert (unet._version, text._version) == versions
    patches.apply([wish(patches, lora, 0.5, 0.8)])
    assert unet._version > versions[0]
    assert text._version == versions[1]


def test_strength_nought_changes_no_bit(own, patches, write):
    before = weights(own)
    patches.apply([wish(patches, write(kohya(1)), 0.0, 0.0)])
    assert same(weights(own), before)


def test_a_failure_half_way_is_undone_by_the_next(own, patches, write, monkeypatch):
    before = weights(own)
    lora = write(kohya(1))
    fitted = wish(patches, lora)
    last = list(fitted.lora.changes.values())[-1]

    def fail(parts, weight):
        raise MemoryError

    monkeypatch.setitem(
        fitted.lora.changes,
        list(fitted.lora.changes)[-1],
        dataclasses.replace(last, kind=dataclasses.replace(last.kind, delta=fail)),
    )
    with pytest.raises(MemoryError):
        patches.apply([fitted])
    patches.restore()
    assert same(weights(own), before)


# ---------------------------------------------------------------------------------------------------------- refusals


def test_one_for_another_width_is_refused(patches, write):
    path = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    lora = write({f"{path}.{name}": tensor for name, tensor in factors(1, inputs=2048).items()})
    assert lora.family == "Stable Diffusion XL"
    with pytest.raises(ValueError, match=r"attn2_to_k does not fit \(16, 16\)"):
        patches.fit(lora)


def test_one_with_none_of_the_modules_is_refused_and_one_with_some_is_not(patches, write):
    strange = {f"lora_unet_double_blocks_0_img_attn_proj.{name}": tensor for name, tensor in factors(1).items()}
    lora = write(strange, "strange")
    assert lora.family == "FLUX"
    with pytest.raises(ValueError, match="none of its 1 modules"):
        patches.fit(lora)
    assert patches.fit(write(kohya(1) | strange, "mixed")).missing == 1


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"model.diffusion_model.out.2.weight": torch.zeros(2, 2)}, "is no LoRA that Atelier knows"),
        ({"lora_unet_x.lora_up.weight": torch.zeros(2, 2)}, "has up alone"),
        ({"lora_unet_x.alpha": torch.tensor(1.0)}, "holds no LoRA"),
    ],
)
def test_what_is_no_lora_is_told(write, tensors, words):
    with pytest.raises(UnsupportedModel, match=words):
        write(tensors)


def test_a_change_of_four_channels_fits_an_inpainting_model():
    from webui.checkpoints.lora.kinds import Parts, difference

    delta = difference(Parts(tensors={"diff": torch.ones(8, 4, 3, 3)}), torch.zeros(8, 9, 3, 3))
    assert delta.shape == (8, 9, 3, 3)
    assert delta[:, :4].all()
    assert not delta[:, 4:].any()


# --------------------------------------------------------------------------------------------- weights in few bits


@pytest.mark.parametrize("name", FORMATS)
@torch.no_grad()
def test_weights_in_few_bits_take_a_lora_and_lose_it_bit_for_bit(own, write, name):
    packed = dataclasses.replace(own, unet=copy.deepcopy(own.unet))
    pack_weights(packed.unet, name)
    patches = WeightPatches(packed)
    before = copy.deepcopy(packed.unet.state_dict())
    lora = write(kohya(1))
    patches.apply([wish(patches, lora)])
    layer = packed.unet.get_submodule(UNET_PATH)
    merged = layer.dense_weight()
    plain = WeightPatches(own)
    plain.apply([wish(plain, lora)])
    wanted = own.unet.get_submodule(UNET_PATH).weight.clone()
    plain.restore()
    assert torch.corrcoef(torch.stack([merged.flatten(), wanted.flatten()]))[0, 1] > 0.98
    assert layer.weight.dtype == before[f"{UNET_PATH}.weight"].dtype
    patches.apply([wish(patches, lora, unet=0.5), wish(patches, write(kohya(2), "other"))])
    patches.restore()
    after = packed.unet.state_dict()
    assert all(
        torch.equal(tensor.view(-1).view(torch.uint8), after[key].view(-1).view(torch.uint8))
        for key, tensor in before.items()
    )


@torch.no_grad()
def test_a_ggufs_blocks_take_a_lora_in_eight_bits_and_come_back_bit_for_bit(own, write):
    packed = dataclasses.replace(own, unet=copy.deepcopy(own.unet))
    for name, weight in own.unet.named_parameters():
        if can_be_packed(packed.unet, name):
            data = gguf.quants.quantize(weight.view(-1, 32).numpy(), gguf.GGMLQuantizationType.Q4_0)
            blocks = Blocks(numbers=torch.from_numpy(data).view(torch.int8), kind="Q4_0", shape=tuple(weight.shape))
            keep_blocks(packed.unet, name, blocks, dtype=torch.float32)
    patches = WeightPatches(packed)
    before = copy.deepcopy(packed.unet.state_dict())
    layer = packed.unet.get_submodule(UNET_PATH)
    plain = layer.dense_weight()
    lora = write(kohya(1))
    patches.apply([wish(patches, lora, unet=0.05)])
    assert (layer.kind, main_kind(packed.unet)) == ("Q8_0", "Q4_0")
    own_patches = WeightPatches(own)
    own_weight = own.unet.get_submodule(UNET_PATH).weight
    unchanged = own_weight.clone()
    own_patches.apply([wish(own_patches, lora, unet=0.05)])
    wanted, got = own_weight - unchanged, layer.dense_weight() - plain
    own_patches.restore()
    assert torch.corrcoef(torch.stack([got.flatten(), wanted.flatten()]))[0, 1] > 0.98, "in four bits it would be lost"

    patches.restore()
    after = packed.unet.state_dict()
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())
    assert all(tensor.dtype == after[key].dtype for key, tensor in before.items())


@torch.no_grad()
def test_recorded_calls_are_given_up_where_a_weight_lies_elsewhere(own, write):
    packed = dataclasses.replace(own, unet=copy.deepcopy(own.unet))
    name = f"{UNET_PATH}.weight"
    shape = tuple(own.unet.get_parameter(name).shape)
    numbers = torch.zeros(own.unet.get_parameter(name).numel() // 32, 18, dtype=torch.int8)
    keep_blocks(packed.unet, name, Blocks(numbers=numbers, kind="Q4_0", shape=shape), dtype=torch.float32)
    patches = WeightPatches(packed)
    lora = write(kohya(1))
    for strength, given_up in ((1.0, True), (0.5, False), (0.0, True)):
        set_recorded(packed.unet, wanted=True, kernels=strength, recorder=lambda: None)
        patches.apply([wish(patches, lora, unet=strength)])
        assert isinstance(packed.unet._compiled_call_impl, RecordedCalls) != given_up
