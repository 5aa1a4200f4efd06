"""What torch and the libraries under it read from the environment, once, as they load."""

from __future__ import annotations

import os


def prepare_environment() -> None:
    """Sets what is better for pictures than the libraries' defaults; to be called before torch is imported.

    OpenMP's threads sleep, rather than spin, until the last of them is done. Spinning gains a third of the time of very
    small networks where nothing else runs, but where a browser or another program takes a core, threads spin for one
    that is not running, thousands of times a picture: the built-in model then took up to a minute in place of a second.

    Large tensors in main memory lie in large pages, where Linux has them: feature maps are made and dropped at each
    layer, and taking them page by page of 4 KiB is a tenth of the time.

    Whoever sets these variables has their way.
    """
    if "GOMP_SPINCOUNT" not in os.environ:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
