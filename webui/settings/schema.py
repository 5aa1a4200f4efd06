"""Every setting, with its type, its range and its default. The file and its faults are in `webui.settings.store`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, field_validator

from webui.core.errors import UserError
from webui.core.filenames import DEFAULT_PATTERN, NamePattern


def _check_pattern(text: str) -> str:
    try:
        NamePattern.parse(text)
    except UserError as error:
        raise ValueError(str(error)) from error
    return text


class Settings(BaseModel):
    """The settings at one moment. Treat the dictionary in `extensions` as read-only; `SettingsStore.update` changes it.

    Raises pydantic's ValidationError; the store turns it into a sentence.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    checkpoint: str = Field(
        default="", description="The checkpoint that new requests start with; empty for the first one."
    )
    attention: str = Field(
        default="auto", min_length=1, description="The attention kernel; auto takes the fastest that works."
    )
    vae: str = Field(
        default="",
        description="The VAE for checkpoints that have none of their own name beside them; empty for their own.",
    )
    # 0 stands for what is measured: half of the free main memory, all of the graphics card's.
    model_memory_gib: float = Field(
        default=0, ge=0, description="Main memory that loaded models may take, in GiB; 0 for half of what is free."
    )
    video_memory_gib: float = Field(
        default=0, ge=0, description="Video memory that models and their work may take, in GiB; 0 for what is free."
    )
    video_memory_use: Literal["auto", "medvram", "lowvram"] = Field(
        default="auto",
        description="What stays in video memory: what fits, or only what is at work, or (lowvram) a few layers of it.",
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="What networks compute in; auto takes the fastest that the device is made for."
    )
    weights: Literal["full", "fp8", "int8", "nf4"] = Field(
        default="full",
        description="How weights of the network and of T5 lie in memory: in the precision that is computed in (GGUF's"
        " as in their file), or in fewer bits.",
    )
    compile: bool = Field(
        default=False, description="Compile the UNet: the first picture of a size waits for it, later ones are faster."
    )
    fast_arithmetic: bool = Field(
        default=False,
        description="Let a graphics card round float32 to TF32 and time its convolutions; last bits of pictures vary.",
    )
    previews: bool = Field(default=True, description="Show the forming picture.")
    previews_per_second: float = Field(
        default=4, gt=0, le=30, description="How often the forming picture is shown at most."
    )
    image_format: Literal["png"] = Field(default="png", description="The format that pictures are saved in.")
    filename_pattern: Annotated[str, AfterValidator(_check_pattern)] = Field(
        default=DEFAULT_PATTERN,
        description="The names of pictures: [number] counts within a day's folder, [seed] is the seed.",
    )
    # Pillow itself refuses twice its warning limit, which is this upper bound.
    max_image_pixels: int = Field(
        default=2**26, ge=2**12, le=178_956_970, description="The largest picture that is opened, in pixels."
    )
    extensions: dict[str, dict[str, Any]] = Field(default={}, description="Each extension's own settings, by its name.")
    disabled_extensions: list[str] = Field(default=[], description="Names of extensions that are not loaded.")

    @field_validator("extensions")
    @classmethod
    def _is_json(cls, values: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """Settings live in a JSON file, so only JSON values can be kept."""
        return TypeAdapter(dict[str, dict[str, JsonValue]]).validate_python(values)
