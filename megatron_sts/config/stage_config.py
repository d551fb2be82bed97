"""The recipe's keys of one stage of training."""

from typing import Any, Literal

from pydantic import Field, field_serializer, field_validator

from megatron_sts.config.architecture import ConfigModel
from megatron_sts.config.compress_config import CompressConfig
from megatron_sts.config.data_config import DataConfig
from megatron_sts.config.skip_config import Selection, SkipConfig, SkippedTokens
from megatron_sts.config.training_config import BatchConfig, LearningRateConfig, LearningRateScheduleConfig

Part = Literal["projector", "language", "vision"]
"""A part of the model that a stage can train."""


class StageLength(ConfigModel):
    """A length of a stage, as training has found it."""

    from_step: int = Field(ge=0)
    """Steps done when it came to hold; 0: the one that the stage was begun with."""
    steps: int = Field(ge=1)
    """Steps of the whole stage."""
    samples: int = Field(ge=1)
    """Samples of the data that is trained on."""


class StageConfig(ConfigModel):
    """One stage of training. Without `skip` and `compress` it is dense."""

    name: str = Field(pattern=r"^[a-z0-9_-]+$")
    """Name of the stage: lower-case letters, digits, - and _."""
    data: DataConfig
    """The data of the stage."""
    trains: tuple[Part, ...] = Field(min_length=1)
    """Parts that are trained; the others are frozen."""
    epochs: float | None = Field(default=None, gt=0)
    """Length in passes over the data; this or steps."""
    steps: int | None = Field(default=None, ge=1)
    """Length in optimiser steps; this or epochs."""
    batch: BatchConfig
    """Batch sizes."""
    learning_rate: LearningRateConfig
    """A rate for exactly the parts in trains."""
    learning_rate_schedule: LearningRateScheduleConfig = LearningRateScheduleConfig()
    """Warm-up and decay of the rates."""
    skip: tuple[SkipConfig, ...] = ()
    """Layer Dynamic Skipper, one block of keys or a list of one for each kind of `tokens`; none: every layer runs."""
    compress: CompressConfig | None = None
    """Visual Token Compressor; None: every visual token is kept."""
    lengths: tuple[StageLength, ...] = ()
    """Written by training, not for a recipe to give: the stage's length, and those that a resume has changed it to."""

    @field_validator("skip", mode="before")
    @classmethod
    def _one_as_several(cls, value: Any) -> Any:
        if value is None:
            return ()
        if isinstance(value, list):
            return tuple(value)
        return value if isinstance(value, tuple) else (value,)

    @field_serializer("skip")
    def _several_as_written(self, skip: tuple[SkipConfig, ...]) -> Any:
        plain = [one.model_dump(mode="json", by_alias=True) for one in skip]
        return plain if len(plain) > 1 else next(iter(plain), None)

    @property
    def sparse_blocks(self) -> dict[str, SkipConfig | CompressConfig]:
        """The blocks that make the stage sparse, by their dotted names."""
        blocks: dict[str, SkipConfig | CompressConfig] = {self.skip_field(skip): skip for skip in self.skip}
        return blocks if self.compress is None else blocks | {f"stages.{self.name}.compress": self.compress}

    @property
    def distill(self) -> float:
        """Weight of the KL term of full steps, one for all blocks that have it; 0: none."""
        return max((block.distill for block in self.sparse_blocks.values()), default=0.0)

    def skip_of(self, tokens: SkippedTokens) -> SkipConfig | None:
        """How layers are skipped for these tokens; None where they are not."""
        return next((one for one in self.skip if one.tokens == tokens), None)

    def selecting(self, selection: Selection) -> "StageConfig":
        """The stage with this selection of layers, in groups that are open where it had another."""
        changed = [
            one if one.selection == selection else one.model_copy(update={"selection": selection, "skip_groups": None})
            for one in self.skip
        ]
        return self.model_copy(update={"skip": tuple(changed)})

    def skip_field(self, skip: SkipConfig) -> str:
        """The dotted name of one of the stage's skip blocks, as an override names it."""
        name = f"stages.{self.name}.skip"
        return name if len(self.skip) == 1 else f"{name}.{skip.tokens}"
