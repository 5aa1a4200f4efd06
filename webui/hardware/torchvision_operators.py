"""Lets torchvision be imported beside a torch that its compiled half was not built for.

torchvision's wheels are built for CUDA; beside a CPU-only torch its library does not load, `import torchvision` then
fails with "operator torchvision::nms does not exist", and transformers and diffusers fail with it. None of them uses
these operators here, so declaring the two schemas that torchvision registers fake versions of is enough. Modules that
import diffusers, transformers, open_clip or spandrel call `declare` first.
"""

from __future__ import annotations

import functools

import torch

_BOXES_AND_SCORES = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


@functools.cache
def declare() -> torch.library.Library | None:
    """Declares ``torchvision::nms`` and ``qnms`` where torchvision's own library cannot; returns what was declared.

    The library object lives as long as the process, in this function's cache: dropping it would undo the declaration.
    """
    try:
        import torchvision  # noqa: F401  # the import is the question
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    else:
        return None
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(name + _BOXES_AND_SCORES)
    return library
