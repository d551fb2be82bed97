"""What a stage of training skips and drops, from the plans of its steps."""

from dataclasses import dataclass

from megatron_sts.config import Recipe
from megatron_sts.planning.scope import PlannedStage
from megatron_sts.sts import StepPlan

# The plans of a longer stage are looked at in even strides.
_PLANNED_STEPS = 10_000


@dataclass(frozen=True)
class Probabilities:
    """Skip probability by layer: mean, lowest and highest over the stage's steps."""

    mean: tuple[float, ...]
    lowest: tuple[float, ...]
    highest: tuple[float, ...]

    @property
    def overall(self) -> float:
        """Over all layers and steps."""
        return sum(self.mean) / len(self.mean)


@dataclass(frozen=True)
class Sparsity:
    """What a stage skips and drops.

    skip, skip_for_visual: probabilities for all tokens, and for visual ones. What follows is counted in the plans
    themselves. layers_run, layers_for_text: layers that run, and that run their MLP for text alone: mean, fewest and
    most in a step; run_share, text_share: the share of the steps in which a layer does.
    visual_tokens: kept of each image, of visual_tokens_dense; where a schedule moves it, the mean over the steps.
    teacher: of the sparse forward passes that full steps distill from; None where there are none.
    """

    skip: Probabilities
    skip_for_visual: Probabilities
    layers_run: tuple[float, int, int]
    layers_for_text: tuple[float, int, int]
    run_share: tuple[float, ...]
    text_share: tuple[float, ...]
    visual_tokens: int
    visual_tokens_dense: int
    teacher: "TeacherPasses | None"


@dataclass(frozen=True)
class TeacherPasses:
    """Forward passes under a sparse plan in steps that distill.

    share: of the steps that have one. run_share, text_share: the share of all steps in which a layer runs in one, and
    runs its MLP for text alone. visual_tokens: kept of each image, the mean over these passes.
    """

    share: float
    run_share: tuple[float, ...]
    text_share: tuple[float, ...]
    visual_tokens: int


def sparsity(recipe: Recipe, planned: PlannedStage) -> Sparsity:
    """The sparsity of a stage; `recipe` has its groups resolved."""
    planner, layers = planned.planner(recipe), recipe.architecture.language.layers
    steps = strided(planned.steps, _PLANNED_STEPS)
    plans = [planner.plan(step) for step in steps]
    kept = [planner.visual_tokens(step) for step in steps]
    run = [frozenset(range(layers)) - plan.skipped_layers for plan in plans]
    for_text = [plan.layers_skipped_for_visual for plan in plans]
    return Sparsity(
        skip=_probabilities([planner.skip_probabilities(step) for step in steps]),
        skip_for_visual=_probabilities([planner.skip_probabilities(step, "visual") for step in steps]),
        layers_run=_counts(run),
        layers_for_text=_counts(for_text),
        run_share=_shares(run, layers),
        text_share=_shares(for_text, layers),
        visual_tokens=round(sum(kept) / len(kept)),
        visual_tokens_dense=recipe.architecture.visual_tokens,
        teacher=_teacher([planner.teacher_plan(step) for step in steps], layers),
    )


def _teacher(plans: list[StepPlan | None], layers: int) -> TeacherPasses | None:
    """plans: of all steps, None for those without a teacher."""
    sparse = [plan for plan in plans if plan is not None]
    if not sparse:
        return None
    run = [frozenset(range(layers)) - plan.skipped_layers if plan else frozenset() for plan in plans]
    for_text = [plan.layers_skipped_for_visual if plan else frozenset() for plan in plans]
    return TeacherPasses(
        share=len(sparse) / len(plans),
        run_share=_shares(run, layers),
        text_share=_shares(for_text, layers),
        visual_tokens=round(sum(plan.visual_tokens for plan in sparse) / len(sparse)),
    )


def _probabilities(by_step: list[tuple[float, ...]]) -> Probabilities:
    by_layer = list(zip(*by_step, strict=True))
    means = tuple(sum(found) / len(found) for found in by_layer)
    return Probabilities(means, tuple(map(min, by_layer)), tuple(map(max, by_layer)))


def _counts(steps: list[frozenset[int]]) -> tuple[float, int, int]:
    counts = [len(layers) for layers in steps]
    return sum(counts) / len(counts), min(counts), max(counts)


def _shares(steps: list[frozenset[int]], layers: int) -> tuple[float, ...]:
    return tuple(sum(layer in step for step in steps) / len(steps) for layer in range(layers))


def strided(total: int, most: int) -> range:
    """At most `most` of the steps 0 to `total` - 1, evenly spread from the first on."""
    return range(0, total, -(-total // most))
