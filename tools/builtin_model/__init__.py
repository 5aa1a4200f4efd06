"""Makes the checkpoint that Atelier ships: draw pictures, train the networks, export, evaluate.

Run as ``python -m tools.builtin_model COMMAND``; see README.md in this folder.
"""
