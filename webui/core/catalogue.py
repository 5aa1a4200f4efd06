"""The names that artists choose from, as A1111 spells them. What they compute is in `webui.engine`.

They live here so that the page and the validation can list them without loading torch; a test holds the engine's
tables and these names together.
"""

from __future__ import annotations

SAMPLERS = ("DPM++ 2M", "Euler a", "Euler", "DDIM")

SCHEDULE_TYPES = ("Automatic", "Uniform", "Karras", "Exponential", "SGM Uniform", "Simple", "Normal", "DDIM")

BUILT_IN_UPSCALERS = ("Lanczos", "Nearest")

DIMENSION_STEP = 8
DIMENSION_RANGE = (64, 2048)
STEPS_RANGE = (1, 150)
CFG_SCALE_RANGE = (1.0, 30.0)
BATCH_SIZE_RANGE = (1, 8)
BATCH_COUNT_RANGE = (1, 100)
MASK_BLUR_RANGE = (0, 64)
PADDING_RANGE = (0, 256)
SCALE_RANGE = (1.0, 8.0)
MAX_SEED = 2**32 - 1
