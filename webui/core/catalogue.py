"""The names that artists choose from, as A1111 spells them. What they compute is in `webui.engine`.

They live here so that the page and the validation can list them without loading torch; a test holds the engine's
tables and these names together.
"""

from __future__ import annotations

# fmt: off
SAMPLERS = (
    "DPM++ 2M", "DPM++ SDE", "DPM++ 2M SDE", "DPM++ 2M SDE Heun", "DPM++ 2S a", "DPM++ 3M SDE", "Euler a", "Euler",
    "LMS", "Heun", "DPM2", "DPM2 a", "DPM fast", "DPM adaptive", "Restart", "DDIM", "DDIM CFG++", "PLMS", "UniPC",
    "LCM", "TCD", "HeunPP2", "IPNDM", "IPNDM_V", "DEIS", "DDPM", "Euler CFG++", "Euler a CFG++",
)

SCHEDULE_TYPES = (
    "Automatic", "Uniform", "Karras", "Exponential", "Polyexponential", "SGM Uniform", "KL Optimal",
    "Align Your Steps", "Simple", "Normal", "DDIM", "Beta", "Turbo", "Align Your Steps GITS", "Align Your Steps 11",
    "Align Your Steps 32",
)
# fmt: on

# Other spellings of those names, in lower case: as programs and old infotexts write them.
SAMPLER_ALIASES: Mapping[str, str] = MappingProxyType({
    "euler ancestral": "Euler a", "dpm++ 2s ancestral": "DPM++ 2S a", "dpm2 ancestral": "DPM2 a",
    "dpm++ 2m sde heun karras": "DPM++ 2M SDE Heun",
})
SCHEDULE_ALIASES: Mapping[str, str] = MappingProxyType({"sgmuniform": "SGM Uniform", "kloptimal": "KL Optimal"})

BUILT_IN_UPSCALERS = ("Lanczos", "Nearest")

# A request's VAE is one of these or a file's name: the one that goes with the checkpoint, or the checkpoint's own.
VAE_AUTOMATIC = "Automatic"
VAE_OWN = "None"

DIMENSION_STEP = 8
DIMENSION_RANGE = (64, 2048)
STEPS_RANGE = (1, 150)
CFG_SCALE_RANGE = (1.0, 30.0)
CLIP_SKIP_RANGE = (1, 12)
REFINER_SWITCH_RANGE = (0.01, 1.0)
BATCH_SIZE_RANGE = (1, 8)
BATCH_COUNT_RANGE = (1, 100)
MASK_BLUR_RANGE = (0, 64)
PADDING_RANGE = (0, 256)
SCALE_RANGE = (1.0, 8.0)
MAX_SEED = 2**32 - 1
