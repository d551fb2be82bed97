"""What a stage of training skips and drops, from the plans of its steps."""

from dataclasses import dataclass

from megatron_sts.config import Recipe
from megatron_sts.planning.scope import PlannedStage

# The plans of a longer stage are looked at in even strides.
_PLANNED_STEPS = 10_000


@dataclass(frozen=True)
class Sparsity:
    """What a stage skips and drops.

    mean, lowest, highest: skip probability by layer over the stage's steps. layers_run: mean, fewest and most in a
    step, and run_share by layer the share of the steps that run it: both counted in the plans themselves.
    visual_tokens: kept of each image, of visual_tokens_dense; where a schedule moves it, the mean over the steps.
    """

    mean: tuple[float, ...]
    lowest: tuple[float, ...]
    highest: tuple[float, ...]
    layers_run: tuple[float, int, int]
    run_share: tuple[float, ...]
    visual_tokens: int
    visual_tokens_dense: int

    @property
    def mean_probability(self) -> float:
        """Skip probability over all layers and steps."""
        return sum(self.mean) / len(self.mean)


def sparsity(recipe: Recipe, planned: PlannedStage) -> Sparsity:
    """The sparsity of a stage; `recipe` has its groups resolved."""
    planner, layers = planned.planner(recipe), recipe.architecture.language.layers
    steps = strided(planned.steps, _PLANNED_STEPS)
    by_layer = list(zip(*(planner.skip_probabilities(step) for step in steps), strict=True))
    plans = [planner.plan(step).skipped_layers for step in steps]
    run = [layers - len(skipped) for skipped in plans]
    kept = [planner.visual_tokens(step) for step in steps]
    return Sparsity(
        mean=tuple(sum(found) / len(found) for found in by_layer),
        lowest=tuple(map(min, by_layer)),
        highest=tuple(map(max, by_layer)),
        layers_run=(sum(run) / len(run), min(run), max(run)),
        run_share=tuple(1 - sum(layer in plan for plan in plans) / len(plans) for layer in range(layers)),
        visual_tokens=round(sum(kept) / len(kept)),
        visual_tokens_dense=recipe.architecture.visual_tokens,
    )


def strided(total: int, most: int) -> range:
    """At most `most` of the steps 0 to `total` - 1, evenly spread from the first on."""
    return range(0, total, -(-total // most))
