"""The recipe's keys of skipping layers."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from megatron_sts.config.architecture import ConfigModel

Selection = Literal["independent", "balanced"]
"""How the layers that a step skips are drawn."""
SkippedTokens = Literal["all", "visual"]
"""The tokens for which layers are skipped."""


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
    distill: float = Field(default=0.0, ge=0)
    """Weight, in these full steps, of the KL divergence from the predictions of the sparse step to those of the full
    one (arXiv 2602.03815), on supervised tokens; 0: none."""
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
    def _numbers_as_measurement(cls, values: Any, info: ValidationInfo) -> Any:
        """Bare numbers hold from the first step on."""
        if isinstance(values, str):
            # As JSON a path is text, and strict pydantic would refuse another form of it.
            return values if info.mode == "json" else Path(values)
        if not isinstance(values, list | tuple):
            return values
        if values and all(isinstance(value, int | float) for value in values):
            values = [{"step": 0, "rises": [float(value) for value in values]}]
        return tuple(values)
