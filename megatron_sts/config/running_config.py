"""The recipe's keys of what goes on beside training: checkpoints, stops, bad steps, logging."""

from typing import Literal

from pydantic import Field

from megatron_sts.config.architecture import ConfigModel


class CheckpointConfig(ConfigModel):
    """When checkpoints are written and how many are kept."""

    every_steps: int | None = Field(default=None, ge=1)
    """Steps between two checkpoints; None: only at the end of a stage."""
    keep_last: int = Field(default=2, ge=1)
    """How many checkpoints of a stage are kept, the newest."""
    keep_every: int | None = Field(default=None, ge=1)
    """Checkpoints of steps that are a multiple of it are kept beside them; None: no others."""
    asynchronous: bool = True
    """Whether training goes on while a checkpoint is written, from a copy of the state in the CPU's memory. The end of
    a stage and a stop wait."""
    max_unfinished: int = Field(default=1, ge=1)
    """How many checkpoints, and copies, may be on their way at a time; the next one waits for the oldest."""
    allow_older: bool = False
    """Whether a run goes on from an older checkpoint where the newest is damaged, and does the steps since again."""


class StopAfterConfig(ConfigModel):
    """How long a run may take before it saves and stops, counted from the start of its process."""

    hours: float = Field(default=0.0, ge=0)
    """Hours; added to the minutes."""
    minutes: float = Field(default=0.0, ge=0)
    """Minutes; added to the hours."""

    @property
    def seconds(self) -> float:
        """The whole time in seconds."""
        return self.hours * 3600 + self.minutes * 60


class BadStepsConfig(ConfigModel):
    """Steps that are dropped because their loss or gradient is not to be trusted."""

    stop_after_in_a_row: int = Field(default=10, ge=1)
    """So many dropped steps in a row end the run: checkpoints of a broken run would only hide it."""


class LossSpikeConfig(ConfigModel):
    """Compares loss and gradient norm of each step, before its update, with those of the last good steps."""

    sigma: float = Field(default=6.0, gt=0)
    """Standard deviations above the mean that make a spike."""
    window: int = Field(default=100, ge=2)
    """Good steps that mean and deviation are taken over; nothing is a spike before there are so many."""
    action: Literal["drop", "warn"] = "drop"
    """drop: the step changes nothing; warn: it is written to bad_steps.jsonl and counts."""


class ValidationConfig(ConfigModel):
    """When the loss of held-out samples is measured, in stages that have `data.validation`."""

    every_steps: int | None = Field(default=None, ge=1)
    """Steps between two measurements; None: only at the end of a stage."""
    samples: int = Field(default=256, ge=1)
    """Most samples that are measured, evenly spread over those that are held out."""


class LoggingConfig(ConfigModel):
    """Where the figures of a run go beside metrics.jsonl."""

    every_steps: int = Field(default=10, ge=1)
    """Steps between two lines on the terminal; metrics.jsonl has every step."""
    tensorboard: bool = True
    """Whether the figures also go to TensorBoard."""
    wandb_project: str | None = None
    """Weights & Biases project; None: not used."""
