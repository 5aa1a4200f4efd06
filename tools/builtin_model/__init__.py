"""Makes the checkpoint that Atelier ships: draw pictures, train the networks, export, evaluate.

Run as ``python -m tools.builtin_model COMMAND``; see README.md in this folder.
"""

from webui.hardware import torchvision_operators

# Before any module of this package imports diffusers.
torchvision_operators.declare()
