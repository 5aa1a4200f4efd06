"""Files made by hand, byte by byte, and tiny modules beside the file that holds them."""

import json
import math
import shutil
import struct

import pytest


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Networks this small lose more time than they win when threads wait for each other on a busy machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


BYTES = {"F16": 2, "F32": 4}


@pytest.fixture
def write_safetensors():
    """Writes a safetensors file of zeros with the given names and shapes; no torch needed."""

    def write(path, shapes, metadata=None, dtype="F16"):
        header, offset = {}, 0
        for name, shape in shapes.items():
            end = offset + BYTES[dtype] * math.prod(shape)
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
            offset = end
        if metadata:
            header["__metadata__"] = metadata
        raw = json.dumps(header).encode()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(offset))
        return path

    return write


UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer.text_model."
SD1_SHAPES = {
    UNET + "input_blocks.0.0.weight": (32, 4, 3, 3),
    UNET + "input_blocks.1.0.out_layers.3.weight": (32, 32, 3, 3),
    UNET + "input_blocks.1.1.proj_in.weight": (32, 32, 1, 1),
    UNET + "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (32, 1),
    UNET + "output_blocks.0.0.out_layers.3.weight": (32, 32, 3, 3),
    UNET + "out.2.weight": (4, 32, 3, 3),
    VAE + "encoder.conv_in.weight": (32, 3, 3, 3),
    VAE + "encoder.down.0.block.0.conv1.weight": (32, 32, 3, 3),
    VAE + "decoder.conv_in.weight": (32, 4, 3, 3),
    VAE + "decoder.conv_out.weight": (3, 32, 3, 3),
    TEXT + "embeddings.token_embedding.weight": (49408, 1),
    TEXT + "embeddings.position_embedding.weight": (77, 1),
    TEXT + "encoder.layers.0.mlp.fc1.weight": (1, 1),
}


@pytest.fixture
def sd1_shapes():
    """The names and shapes by which a tiny Stable Diffusion 1 file is recognised; not all that it would have."""
    return dict(SD1_SHAPES)


@pytest.fixture
def tiny_file(tiny_checkpoint, tmp_path):
    """A copy of the tiny checkpoint's file, alone in a models folder of its own."""
    folder = tmp_path / "models" / "Stable-diffusion"
    folder.mkdir(parents=True)
    return shutil.copy(tiny_checkpoint / "Stable-diffusion" / "tiny-random.safetensors", folder / "tiny.safetensors")


@pytest.fixture(scope="session")
def write_gguf():
    """Writes weights as GGUF."""
    import gguf

    def write(state, path, kind=gguf.GGMLQuantizationType.F16):
        """As city96's converter: bare names; norms and biases in full, matrices packed, other shapes said beside."""
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = gguf.GGUFWriter(path, "sd1")
        for name, weight in state.items():
            numbers = weight.float().numpy()
            packs = numbers.ndim > 1 and numbers.size % 32 == 0
            if packs and numbers.shape[-1] % 32 and kind is not gguf.GGMLQuantizationType.F16:
                writer.add_array(f"comfy.gguf.orig_shape.{name}", list(numbers.shape))
                numbers = numbers.reshape(-1, 32)
            used = kind if packs else gguf.GGMLQuantizationType.F32
            writer.add_tensor(name, gguf.quants.quantize(numbers, used), raw_dtype=used)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write
