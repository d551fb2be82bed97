"""The typed recipe: one class per subject. Checks that concern several fields are in checks.py."""

from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_serializer, field_validator, model_validator
from pydantic_core import PydanticCustomError

from megatron_sts.config.architecture import Architecture, ConfigModel
from megatron_sts.config.data_config import DataConfig
from megatron_sts.config.running_config import (
    BadStepsConfig,
    CheckpointConfig,
    LoggingConfig,
    LossSpikeConfig,
    StopAfterConfig,
    ValidationConfig,
)
from megatron_sts.config.suggestion import suggestion
from megatron_sts.errors import ConfigError

Part = Literal["projector", "language", "vision"]
"""A part of the model that a stage can train."""
Selection = Literal["independent", "balanced"]
"""How the layers that a step skips are drawn."""
SkippedTokens = Literal["all", "visual"]
"""The tokens for which layers are skipped."""
RecomputedModule = Literal["core_attn", "layernorm", "mlp"]
"""A part of a layer that backward can compute again, by megatron-core's name; its others belong to other models."""


class ParallelConfig(ConfigModel):
    """How the model is spread over the ranks; data parallel is what is left of them."""

    tensor: int = Field(default=1, ge=1)
    """Tensor parallel ranks."""
    pipeline: int = Field(default=1, ge=1)
    """Pipeline stages."""
    virtual_pipeline: int = Field(default=1, ge=1)
    """Model chunks on each pipeline stage (interleaved schedule); 1: not interleaved."""
    context: int = Field(default=1, ge=1)
    """Context parallel ranks."""
    sequence_parallel: bool = False
    """Whether activations between the tensor-parallel parts are split along the sequence."""
    layers_per_stage: tuple[int, ...] | None = None
    """Layers of every virtual stage in order of depth; None: an even split."""
    overlap_grad_reduce: bool = False
    """Whether gradients are reduced over the data-parallel ranks, bucket by bucket, while the backward pass runs."""
    overlap_param_gather: bool = False
    """Whether the distributed optimiser's weights are gathered while the next forward pass runs."""
    bucket_parameters: int | None = Field(default=None, ge=1)
    """Least parameters of a gradient bucket under overlap_grad_reduce; None: megatron-core's own choice."""
    timeout_minutes: float = Field(default=10.0, gt=0)
    """How long a rank waits for another, in minutes, before the run ends: for one that was lost, for rank 0 while it
    measures the data, for the slowest writer of a checkpoint."""

    def layers_of_stages(self, layers: int) -> list[range]:
        """Layers (0-based) of each virtual stage, in order of depth.

        Virtual stage i lives on pipeline rank i % pipeline as its chunk i // pipeline, as in megatron-core.
        """
        stages = self.pipeline * self.virtual_pipeline
        counts = self.layers_per_stage or (layers // stages,) * stages
        assert len(counts) == stages and sum(counts) == layers
        ends = list(accumulate(counts))
        return [range(end - count, end) for count, end in zip(counts, ends, strict=True)]


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


class OptimizerConfig(ConfigModel):
    """The optimiser of every stage; the rates are the stage's."""

    kind: Literal["adam", "sgd"] = "adam"
    """adam (with decoupled weight decay) or sgd with momentum."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Adam's decay of the first moment."""
    beta2: float = Field(default=0.999, ge=0, lt=1)
    """Adam's decay of the second moment."""
    epsilon: float = Field(default=1e-8, gt=0)
    """Adam's epsilon."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Momentum of sgd."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Weight decay, not applied to norms and biases."""
    clip_grad: float = Field(default=1.0, ge=0)
    """Largest norm of the gradient of all trained parameters; 0: not clipped."""
    distributed: bool = False
    """Whether the optimiser's state is split over the data-parallel ranks."""


class BatchConfig(ConfigModel):
    """Batch sizes, in samples. In YAML the first key is `global`."""

    # Not `alias`: `global` is a keyword, and so a type checker still takes BatchConfig(global_size=...).
    global_size: int = Field(ge=1, validation_alias="global", serialization_alias="global")
    """Samples of one optimiser step, over all ranks."""
    micro: int = Field(ge=1)
    """Samples of one forward and backward on one data-parallel rank."""


class LearningRateConfig(ConfigModel):
    """Highest learning rate of each trained part; exactly the parts in `trains` have one."""

    projector: float | None = Field(default=None, gt=0)
    """Rate of the projector."""
    language: float | None = Field(default=None, gt=0)
    """Rate of the language model."""
    vision: float | None = Field(default=None, gt=0)
    """Rate of the vision tower."""

    @property
    def rates(self) -> dict[str, float]:
        """The parts that have a rate, with it."""
        named = {"projector": self.projector, "language": self.language, "vision": self.vision}
        return {part: rate for part, rate in named.items() if rate is not None}


class LearningRateScheduleConfig(ConfigModel):
    """How the rates move over a stage: linear warm-up, then decay."""

    decay: Literal["cosine", "constant"] = "cosine"
    """Shape after the warm-up."""
    warmup_ratio: float = Field(default=0.03, ge=0, le=1)
    """Share of the stage's steps that warm up; unused where warmup_steps is given."""
    warmup_steps: int | None = Field(default=None, ge=0)
    """Steps that warm up; None: warmup_ratio decides."""
    minimum_ratio: float = Field(default=0.0, ge=0, le=1)
    """Rate at the end of the decay, as a share of the highest rate."""


class EarlierGroups(ConfigModel):
    """Groups of layers that a resume has replaced by others."""

    before_step: int = Field(ge=0)
    """0-based step from which on they hold no more."""
    sizes: tuple[int, ...]
    """Layers of each group in order of depth."""

    @field_validator("sizes", mode="before")
    @classmethod
    def _list_as_tuple(cls, values: Any) -> Any:
        """As that of SkipConfig."""
        return tuple(values) if isinstance(values, list) else values


class MeasuredRises(ConfigModel):
    """What each layer was measured to be worth, from a step of the stage on."""

    step: int = Field(ge=0)
    """0-based step before which it was measured."""
    rises: tuple[float, ...]
    """By layer: how much the loss rises without it, in nats a supervised token."""

    @field_validator("rises", mode="before")
    @classmethod
    def _list_as_tuple(cls, values: Any) -> Any:
        """Behind the validator of SkipConfig a list is no longer JSON, and strict pydantic would refuse it."""
        return tuple(values) if isinstance(values, list) else values


class SkipConfig(ConfigModel):
    """The Layer Dynamic Skipper (arXiv 2509.18150).

    p_l(e) = alpha ((E-e)/E)^2 (1 + epsilon (2l-(L-1))/(L-1))
    """

    tokens: SkippedTokens = "all"
    """all: a skipped layer is the identity; visual: it leaves out its MLP for the visual tokens, and runs otherwise."""
    alpha: float
    """Mean skip probability at its highest: at the start with sts, throughout with constant, at the end with pld."""
    by: Literal["depth", "redundancy"] = "depth"
    """What the rate of a layer follows: its depth (epsilon), or how little the loss rises without it."""
    epsilon: float = 0.0
    """Tilt over the depth, with by: depth: above 0 deep layers are skipped more."""
    rises: Path | tuple[MeasuredRises, ...] | None = None
    """With by: redundancy, what each layer is worth: the json of tools/probe.py, or one number for each layer; None:
    measured when the stage starts. A checkpoint has what was measured, with the step."""
    protect_above: float = Field(default=0.5, gt=0)
    """With by: redundancy, layers without which the loss rises by more are never skipped; nats a supervised token."""
    measure_every: int | None = Field(default=None, ge=1)
    """Steps after which the rises are measured again, with by: redundancy; None: they hold for the whole stage."""
    progress: Literal["step", "epoch"] = "step"
    """What e counts: steps, or whole epochs (with one epoch the rate then stays alpha)."""
    schedule: Literal["sts", "constant", "pld"] = "sts"
    """sts: fades as (1 - e/E)^2; constant: stays; pld: rises as in progressive layer drop (arXiv 2010.13369)."""
    selection: Selection = "balanced"
    """independent: one Bernoulli draw per layer, as in the paper; balanced: every group skips the same number."""
    skip_groups: int | tuple[int, ...] | None = None
    """Groups of neighbouring layers that `balanced` evens: a number or a list of sizes; None: the virtual pipeline
    stages of the layout on which the stage begins."""
    never_skip: tuple[int, ...] = ()
    """0-based numbers of layers that always run."""
    min_layers_run: int = Field(default=0, ge=0)
    """Fewest layers that run in any step."""
    parameters: Literal["frozen", "momentum"] = "frozen"
    """Weights of a skipped layer in that step: left as they are, or moved by the optimiser's momentum and decay; with
    tokens: visual every weight trains."""
    ramp_ratio: float = Field(default=0.0, ge=0, le=1)
    """Share of the stage's steps over which the rate rises linearly from 0 to what the schedule says."""
    full_share: float = Field(default=0.0, ge=0, le=1)
    """Share of the steps, evenly spread, that run all layers, whatever the schedule says."""
    max_loss_rise: float = Field(default=1.0, gt=0)
    """Most by which leaving out may raise the loss of the weights that a stage starts from, in nats a supervised token;
    measured before the first update, and more ends the run."""
    accept_loss_rise: bool = False
    """Whether a stage trains whatever leaving out costs the weights that it starts from."""
    earlier_groups: tuple[EarlierGroups, ...] = ()
    """Written by training, not for a recipe to give: groups of steps that are done, oldest first."""

    @field_validator("skip_groups", "never_skip", "earlier_groups", mode="before")
    @classmethod
    def _list_as_tuple(cls, values: Any) -> Any:
        """Behind the validator of StageConfig a list is no longer JSON, and strict pydantic would refuse it."""
        return tuple(values) if isinstance(values, list) else values

    @field_validator("rises", mode="before")
    @classmethod
    def _numbers_as_measurement(cls, values: Any) -> Any:
        """Bare numbers hold from the first step on."""
        if isinstance(values, str):
            return Path(values)
        if not isinstance(values, list | tuple):
            return values
        if values and all(isinstance(value, int | float) for value in values):
            values = [{"step": 0, "rises": [float(value) for value in values]}]
        return tuple(values)


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
