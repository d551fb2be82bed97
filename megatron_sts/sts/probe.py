"""What tools/probe.py measures: whole plans at several rates, and which of them a budget of loss allows."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from megatron_sts.config import CompressConfig, MeasuredRises, Recipe, SkipConfig, SkippedTokens, StageConfig
from megatron_sts.sts.plan import StagePlanner, StepPlan
from megatron_sts.sts.redundancy import largest_alpha

RATES: dict[SkippedTokens, tuple[float, ...]] = {"all": (1 / 6, 1 / 3, 1 / 2), "visual": (1 / 4, 1 / 2, 3 / 4, 0.9)}
KEEP_RATIOS = (0.5, 0.25)
DRAWS = 2


@dataclass(frozen=True)
class Trial:
    """A way to make a step sparse: layers skipped at a constant rate, or a share of the visual tokens kept.

    by, tokens, alpha: of a skip, None where every layer runs. keep_ratio: of `uniform` compression; 1: all are kept.
    """

    by: str | None
    tokens: SkippedTokens | None
    alpha: float
    keep_ratio: float

    def settings(self, rises: Sequence[float] = ()) -> dict[str, dict[str, object]]:
        """What a recipe's stage says for it, under `skip` and `compress`."""
        if self.tokens is None:
            return {"compress": {"strategy": "uniform", "keep_ratio": self.keep_ratio}}
        skip: dict[str, object] = {"tokens": self.tokens, "by": self.by, "alpha": self.alpha, "schedule": "constant"}
        return {"skip": skip | ({"rises": list(rises)} if rises else {})}


def trials(rises: Mapping[SkippedTokens, Sequence[float]], protect_above: float, has_images: bool) -> list[Trial]:
    """What is tried, given the measured rises: what these do not allow is left out."""
    found: list[Trial] = []
    for tokens, alphas in RATES.items():
        if tokens == "visual" and not has_images:
            continue
        for by in ("depth", "redundancy"):
            largest = 1.0
            if by == "redundancy":
                skip = SkipConfig(alpha=0.0, by="redundancy", protect_above=protect_above)
                largest = largest_alpha(rises[tokens], skip, [range(len(rises[tokens]))])
            found += [Trial(by, tokens, round(alpha, 4), 1.0) for alpha in alphas if alpha <= largest]
    if has_images:
        found += [Trial(None, None, 0.0, ratio) for ratio in KEEP_RATIOS]
    return found


def plans_of(
    trial: Trial,
    recipe: Recipe,
    stage: StageConfig,
    rises: Mapping[SkippedTokens, Sequence[float]],
    protect_above: float,
) -> list[StepPlan]:
    """A few draws of a trial; one where nothing is drawn. The layers are one group, whatever the layout."""
    skip: tuple[SkipConfig, ...] = ()
    compress = None
    if trial.tokens is None:
        compress = CompressConfig(keep_ratio=trial.keep_ratio)
    else:
        measured = (MeasuredRises(step=0, rises=tuple(rises[trial.tokens])),) if trial.by == "redundancy" else None
        settings = {"tokens": trial.tokens, "by": trial.by, "alpha": trial.alpha, "rises": measured}
        skip = (SkipConfig(**settings, schedule="constant", skip_groups=1, protect_above=protect_above),)  # type: ignore[arg-type]
    draws = DRAWS if trial.tokens is not None else 1
    changed = stage.model_copy(update={"skip": skip, "compress": compress})
    planner = StagePlanner(recipe, changed, draws, float(draws))
    return [planner.plan(step) for step in range(draws)]


@dataclass(frozen=True)
class Measured:
    """A trial, how much it raises the loss, with the standard error, and the share of the FLOPs that it saves."""

    trial: Trial
    rise: float
    standard_error: float
    saved: float

    @property
    def improves(self) -> bool:
        """Whether leaving out lowers the loss by more than noise, so that the weights do not fit the data yet."""
        return self.rise < -2 * self.standard_error


def trusted(found: Sequence[Measured]) -> list[bool]:
    """Of each trial whether its rise says what it costs: not where it, or a lower rate of its kind, improves the loss.

    What harm such a plan does is hidden behind what the weights have yet to unlearn.
    """

    def rate(trial: Trial) -> float:
        return trial.alpha + 1 - trial.keep_ratio

    lowest: dict[tuple[object, object], float] = {}
    for one in found:
        kind = (one.trial.by, one.trial.tokens)
        if one.improves:
            lowest[kind] = min(rate(one.trial), lowest.get(kind, math.inf))
    return [rate(one.trial) < lowest.get((one.trial.by, one.trial.tokens), math.inf) for one in found]


def best_within(budget: float, found: Sequence[Measured]) -> int | None:
    """The number of the trusted trial that saves most at a rise within the budget; None where there is none."""
    within = [
        (one.saved, number)
        for number, (one, is_trusted) in enumerate(zip(found, trusted(found), strict=True))
        if is_trusted and one.rise <= budget and one.saved > 0
    ]
    return max(within)[1] if within else None
