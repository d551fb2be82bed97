"""The typed recipe: the whole run. Each part has a file of its own; checks of several fields are in checks.py."""

from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from megatron_sts.config.architecture import Architecture, ConfigModel
from megatron_sts.config.parallel_config import ParallelConfig
from megatron_sts.config.running_config import (
    BadStepsConfig,
    CheckpointConfig,
    LoggingConfig,
    LossSpikeConfig,
    StopAfterConfig,
    ValidationConfig,
)
from megatron_sts.config.stage_config import StageConfig
from megatron_sts.config.suggestion import suggestion
from megatron_sts.config.training_config import OptimizerConfig
from megatron_sts.errors import ConfigError

RecomputedModule = Literal["core_attn", "layernorm", "mlp"]
"""A part of a layer that backward can compute again, by megatron-core's name; its others belong to other models."""


class ModelConfig(ConfigModel):
    """What is trained and where its weights come from."""

    architecture: Architecture
    """Sizes of the model; in YAML a file (beside the recipe or in the current directory) or a mapping, or left out
    where `init` was imported and holds them.
    """
    vision: Path | None = None
    """Hugging Face vision encoder directory: config.json, preprocessor_config.json, and without `init` safetensors.

    Left out: what `init` was imported with.
    """
    tokenizer: Path | None = None
    """Hugging Face tokenizer directory whose tokenizer has the special token `<image>`; left out: that of `init`."""
    init: Path | None = None
    """Distributed checkpoint to start from (`tools/convert.py import`); None: fresh weights, seeded."""


class Recipe(ConfigModel):
    """A whole run. `load_recipe` reads and checks one; one built in code is checked by `check_recipe`."""

    output_dir: Path
    """Directory of the run: checkpoints, metrics.jsonl, the resolved recipe."""
    seed: int = Field(default=1234, ge=0, lt=2**32)
    """Seed of fresh weights, of the data's order and of every draw."""
    precision: Literal["fp32", "bf16", "fp8"] = "bf16"
    """Precision of the computation; the optimiser's weights are fp32."""
    fp8_recipe: Literal["tensorwise", "delayed", "blockwise"] = "tensorwise"
    """How FP8 products are scaled, under precision fp8: by each tensor's own largest value, by those of earlier steps,
    or block by block."""
    fp8_bf16_layers: int = Field(default=0, ge=0)
    """How many layers at each end of the language model stay in bf16 under precision fp8."""
    length_rounding: int | None = Field(default=None, ge=1)
    """Sequence lengths are rounded up to a multiple of it, where samples are not packed: a GPU's attention compiles a
    plan for each shape. None: 1 in fp32, 64 in bf16, 128 in fp8, on every machine."""
    parallel: ParallelConfig = ParallelConfig()
    """How the model is spread over the ranks."""
    model: ModelConfig
    """What is trained and where its weights come from."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """The optimiser of every stage."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When checkpoints are written and how many are kept."""
    on_save_error: Literal["stop", "continue"] = "stop"
    """What a run does where a checkpoint cannot be written: end, or go on and try again at the next one. Without the
    checkpoint of a stage's end, or of a stop, it ends."""
    validation: ValidationConfig = ValidationConfig()
    """When the loss of held-out samples is measured."""
    keep_best: bool = False
    """Whether the checkpoint of the lowest validation loss of a stage is kept beside those that `checkpoint` says; the
    loss is then also measured before each checkpoint."""
    logging: LoggingConfig = LoggingConfig()
    """Where the figures go beside metrics.jsonl."""
    stop_after: StopAfterConfig | None = None
    """When to save and stop by itself, before a scheduler does it; None: never."""
    bad_steps: BadStepsConfig = BadStepsConfig()
    """How many dropped steps are borne."""
    loss_spike: LossSpikeConfig | None = None
    """Guard against sudden rises of loss or gradient; None: off."""
    recompute: Literal["none", "full"] | tuple[RecomputedModule, ...] = "none"
    """Activations computed again in backward: none, whole layers (full), or those of the modules in a list."""
    stages: tuple[StageConfig, ...]
    """The stages, in order. There are none in the run.json of a checkpoint that was imported, and not trained."""

    @field_validator("recompute", mode="before")
    @classmethod
    def _modules_by_name(cls, value: Any) -> Any:
        """A list as a tuple; `selective` as the module that it was."""
        value = ["core_attn"] if value == "selective" else value
        modules = get_args(RecomputedModule)
        if isinstance(value, list | tuple) and all(module in modules for module in value):
            return tuple(value)
        if value in ("none", "full"):
            return value
        # Of a union pydantic would report every member.
        raise PydanticCustomError("recompute", f"none, full, or a list of {', '.join(modules)}")

    @property
    def architecture(self) -> Architecture:
        """Sizes of the tower and of the language model."""
        return self.model.architecture

    def stage(self, name: str) -> StageConfig:
        """The stage of that name; ConfigError, with the names there are, where there is none."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        names = [stage.name for stage in self.stages]
        raise ConfigError(f"the recipe has no stage '{name}'{suggestion(name, names)} its stages: {', '.join(names)}")

    def with_stage(self, stage: StageConfig) -> "Recipe":
        """The recipe with this stage in the place of the one of its name."""
        stages = tuple(stage if one.name == stage.name else one for one in self.stages)
        return self.model_copy(update={"stages": stages})

    def resolved(self) -> dict[str, Any]:
        """Plain values under their YAML names, every default filled in and the architecture inline."""
        return self.model_dump(mode="json", by_alias=True)
