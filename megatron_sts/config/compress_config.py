"""The recipe's keys of compressing visual tokens."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from megatron_sts.config.architecture import ConfigModel


class KeepScheduleConfig(ConfigModel):
    """How the share of the visual tokens that is kept moves over a stage."""

    kind: Literal["constant", "linear", "cosine", "steps"] = "linear"
    """constant: start; linear, cosine: from start to end; steps: each of values for the same part of the stage."""
    start: float | None = Field(default=None, gt=0, le=1)
    """Share at the first step; all kinds but steps."""
    end: float | None = Field(default=None, gt=0, le=1)
    """Share that the end of the stage approaches; linear and cosine."""
    values: tuple[Annotated[float, Field(gt=0, le=1)], ...] = ()
    """Shares one after another; steps."""

    @field_validator("values", mode="before")
    @classmethod
    def _list_as_tuple(cls, values: Any) -> Any:
        """Behind the validator of CompressConfig a list is no longer JSON, and strict pydantic would refuse it."""
        return tuple(values) if isinstance(values, list) else values


class CompressConfig(ConfigModel):
    """The Visual Token Compressor (arXiv 2509.18150): which visual tokens of an image are kept."""

    strategy: Literal["uniform", "random", "text_guided", "mean_pool", "none"] = "uniform"
    """uniform: evenly strided over the tokens; random: a fresh subset in every step; text_guided: those most like the
    words of the human turns; mean_pool: the mean of each window of patches; none: all, the amounts below are unused."""
    keep_ratio: float | None = Field(default=None, gt=0, le=1)
    """Share of the visual tokens that is kept; 0.5 where neither keep_tokens nor schedule is given."""
    keep_tokens: int | None = Field(default=None, ge=1)
    """Visual tokens of an image that are kept, instead of keep_ratio."""
    window: int | None = Field(default=None, ge=1)
    """Side of a window of mean_pool, in patches; 2 where it is not given."""
    schedule: KeepScheduleConfig | None = None
    """Shares that change over the stage, instead of keep_ratio."""
    full_share: float = Field(default=0.0, ge=0, le=1)
    """Share of the steps, evenly spread, that keep all visual tokens; a full_share of skip as large names the same."""
    distill: float = Field(default=0.0, ge=0)
    """As that of skip, for the full steps of compression; where both give one it is the same."""

    @model_validator(mode="before")
    @classmethod
    def _fill_amount(cls, values: Any) -> Any:
        """Write the default amount into the recipe, so that a resolved recipe says what was kept."""
        if not isinstance(values, dict):
            return values
        if values.get("strategy") == "mean_pool":
            return values if values.get("window") is not None else {**values, "window": 2}
        amounts = ("keep_ratio", "keep_tokens", "schedule")
        if all(values.get(amount) is None for amount in amounts):
            return {**values, "keep_ratio": 0.5}
        return values
