import subprocess
import sys

PROGRAM = """
from webui.hardware.torchvision_operators import declare
first = declare()
assert declare() is first
import torch, torchvision
from transformers import CLIPTextModel
assert torch.ops.torchvision.nms is not None
"""


def test_the_libraries_import_after_the_declaration():
    """In a process of its own, since the declaration and the imports last as long as one does."""
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120, check=False)

    assert result.returncode == 0, result.stderr
