"""The recipe's keys of the optimiser, of batches and of learning rates."""

from typing import Literal

from pydantic import Field

from megatron_sts.config.architecture import ConfigModel


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
