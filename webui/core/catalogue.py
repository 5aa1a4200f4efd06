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

# Schedule types that A1111 once wrote as the end of a sampler's name ("DPM++ 2M Karras").
_JOINED_SCHEDULES = ("Karras", "Exponential", "Polyexponential", "SGM Uniform")

BUILT_IN_UPSCALERS = ("Lanczos", "Nearest")

# Hires fix's ways to enlarge latents, beside every pixel upscaler; A1111's names.
LATENT_UPSCALERS = (
    "Latent",
    "Latent (antialiased)",
    "Latent (bicubic)",
    "Latent (bicubic antialiased)",
    "Latent (nearest)",
    "Latent (nearest-exact)",
)

# A request's VAE is one of these or a file's name: the one that goes with the checkpoint, or the checkpoint's own.
VAE_AUTOMATIC = "Automatic"
VAE_OWN = "None"

DIMENSION_STEP = 8
DIMENSION_RANGE = (64, 8192)
STEPS_RANGE = (1, 150)
CFG_SCALE_RANGE = (1.0, 30.0)
CLIP_SKIP_RANGE = (1, 12)
REFINER_SWITCH_RANGE = (0.01, 1.0)
BATCH_SIZE_RANGE = (1, 8)
# Attention kernels by the names that flags and settings know, the preferred first; "auto" tries and times them.
ATTENTION_KERNELS = (
    "xformers",
    "sdpa",
    "sdpa-flash",
    "sdpa-cudnn",
    "sdpa-efficient",
    "flash-attn",
    "sage",
    "chunked",
    "split",
    "sdpa-math",
)
# How the denoising network's weights lie in memory, by the names that flags and settings know.
PRECISIONS = ("auto", "float32", "bfloat16", "float16")
WEIGHT_FORMATS = ("full", "fp8", "int8", "nf4")

BATCH_COUNT_RANGE = (1, 100)
MASK_BLUR_RANGE = (0, 64)
PADDING_RANGE = (0, 256)
SCALE_RANGE = (1.0, 8.0)
MAX_SEED = 2**32 - 1
HIRES_SCALE_RANGE = (1.0, 4.0)
HIRES_STEPS_RANGE = (0, 150)
LOOPS_RANGE = (1, 32)
EXTRA_NOISE_RANGE = (0.0, 1.0)
SD_UPSCALE_OVERLAP_RANGE = (0, 256)
TILE_RANGE = (256, 4096)
TILE_OVERLAP_RANGE = (0, 1024)
OUTPAINT_RANGE = (0, 2048)
SCHEDULE_BIAS_RANGE = (0.0, 8.0)
PRESERVATION_STRENGTH_RANGE = (0.0, 8.0)
TRANSITION_CONTRAST_RANGE = (1.0, 32.0)
MASK_INFLUENCE_RANGE = (0.0, 1.0)
DIFFERENCE_THRESHOLD_RANGE = (0.0, 8.0)
DIFFERENCE_CONTRAST_RANGE = (0.0, 8.0)
NOISE_LEVEL_RANGE = (0, 350)

ETA_RANGE = (0.0, 1.0)
S_CHURN_RANGE = (0.0, 100.0)
S_TMIN_RANGE = (0.0, 10.0)
S_TMAX_RANGE = (0.0, 999.0)
S_NOISE_RANGE = (0.0, 2.0)
UNIPC_ORDER_RANGE = (1, 6)
SIGMA_RANGE = (0.001, 5000.0)
RHO_RANGE = (0.0, 100.0)
BETA_RANGE = (0.01, 10.0)
CFG_RESCALE_RANGE = (0.0, 1.0)
SKIP_EARLY_RANGE = (0.0, 1.0)
SKIP_NEGATIVE_BELOW_RANGE = (0.0, 15.0)
IMAGE_CFG_SCALE_RANGE = (0.0, 10.0)

FREEU_BACKBONE_RANGE = (0.0, 2.0)
FREEU_SKIP_RANGE = (0.0, 4.0)
EPSILON_SCALING_RANGE = (0.9, 1.1)
MIMIC_SCALE_RANGE = (0.0, 30.0)
THRESHOLD_PERCENTILE_RANGE = (90.0, 100.0)
TOKEN_MERGING_RANGE = (0.0, 0.9)
PAG_SCALE_RANGE = (0.0, 100.0)
SAG_SCALE_RANGE = (0.0, 5.0)


def sampler_and_schedule(name: str) -> tuple[str, str]:
    """A sampler's name as any A1111 wrote it, taken apart: the sampler and the schedule type it is run with.

    "DPM++ 2M" is ("DPM++ 2M", "Automatic"), the old "DPM++ 2M Karras" is ("DPM++ 2M", "Karras"). Known samplers come in
    this module's spelling, whatever theirs; an unknown name comes back as it is, less the schedule type.
    """
    known = {sampler.casefold(): sampler for sampler in SAMPLERS}
    name = name.strip()
    if name.casefold() in known:
        return known[name.casefold()], "Automatic"
    for schedule in _JOINED_SCHEDULES:
        if name.casefold().endswith(f" {schedule.casefold()}"):
            sampler = name[: -len(schedule)].rstrip()
            return known.get(sampler.casefold(), sampler), schedule
    return name, "Automatic"
