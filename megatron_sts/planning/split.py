"""The split of the layers over the pipeline that evens its load: tower and logits weigh on the first and last stage."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from megatron_sts.config import Recipe
from megatron_sts.errors import ConfigError
from megatron_sts.planning.costs import MicroBatchCosts
from megatron_sts.sts import PipelineSchedule, group_sizes, resolve_skip_groups

# A split that gains less is not worth another layout.
_LEAST_GAIN = 1e-3


@dataclass(frozen=True)
class StageLoad:
    """A stage of training: its steps, their schedule, and what a micro-batch costs with every layer running."""

    steps: int
    schedule: PipelineSchedule
    costs: MicroBatchCosts

    def time(self, counts: Sequence[int]) -> float:
        """Simulated time of all steps with so many layers on each virtual stage."""
        return self.steps * self.schedule.simulate(*self.costs.of_stages(counts)).total


def with_split(recipe: Recipe, counts: Sequence[int], earlier: Recipe | None) -> Recipe:
    """The recipe with these layers on its virtual stages, its open groups resolved on them; ConfigError if it cannot.

    `recipe` has the groups as the user wrote them. earlier: as for `resolve_skip_groups`.
    """
    parallel = recipe.parallel.model_copy(update={"layers_per_stage": tuple(counts)})
    return resolve_skip_groups(recipe.model_copy(update={"parallel": parallel}), earlier)


def best_split(recipe: Recipe, earlier: Recipe | None, loads: Sequence[StageLoad]) -> tuple[int, ...]:
    """Layers of each virtual stage, in order of depth, that take the least time over these stages of training.

    Layers go one by one (with groups of layers that the recipe fixes: group by group) to the rank with the least
    load, there to the chunk with the least. That is done for every least number of layers that a virtual stage
    may have, because groups of very different sizes cannot share a count; of the splits whose groups are in order
    the one is taken whose simulated time is the least. The recipe's own split where none gains 0.1%.
    """
    parallel, layers = recipe.parallel, recipe.architecture.language.layers
    own = tuple(len(stage) for stage in parallel.layers_of_stages(layers))
    unit = _unit(recipe, earlier)
    if parallel.pipeline == 1 or unit is None:
        return own
    best, best_time = own, sum(load.time(own) for load in loads) * (1 - _LEAST_GAIN)
    for least in range(1, layers // (unit * len(own)) + 1):
        counts = _filled(recipe, loads, unit, least)
        time = sum(load.time(counts) for load in loads)
        if time < best_time and _in_order(recipe, counts, earlier):
            best, best_time = counts, time
    return best


def _filled(recipe: Recipe, loads: Sequence[StageLoad], unit: int, least: int) -> tuple[int, ...]:
    """Units of layers handed out one by one to where the load is least; every virtual stage begins with `least`."""
    pipeline, virtual = recipe.parallel.pipeline, recipe.parallel.virtual_pipeline
    stages = pipeline * virtual
    layer = sum(load.steps * load.costs.layer.total for load in loads)
    extra = [0.0] * stages
    extra[0] += sum(load.steps * load.costs.first.total for load in loads)
    extra[-1] += sum(load.steps * load.costs.last.total for load in loads)
    counts = [unit * least] * stages

    def load_of(stage: int) -> tuple[float, float, int]:
        own = [extra[chunk] + layer * counts[chunk] for chunk in range(stage % pipeline, stages, pipeline)]
        # Of equals the later one: it keeps the activations of fewer micro-batches.
        return sum(own), extra[stage] + layer * counts[stage], -stage

    for _ in range(recipe.architecture.language.layers // unit - least * stages):
        counts[min(range(stages), key=load_of)] += unit
    return tuple(counts)


def _in_order(recipe: Recipe, counts: Sequence[int], earlier: Recipe | None) -> bool:
    try:
        with_split(recipe, counts, earlier)
    except ConfigError:
        return False
    return True


def _unit(recipe: Recipe, earlier: Recipe | None) -> int | None:
    """Layers that can only move together, because groups end there; None where groups leave no other split."""
    fixed = [set(groups) for groups in _fixed_groups(recipe, earlier)]
    if any(len(sizes) > 1 for sizes in fixed):
        return None
    return math.lcm(*(size for sizes in fixed for size in sizes))


def _fixed_groups(recipe: Recipe, earlier: Recipe | None) -> Iterator[tuple[int, ...]]:
    """Sizes of the groups of each stage that does not take those of the layout."""
    for stage in recipe.stages:
        if stage.skip is None or stage.skip.selection != "balanced":
            continue
        if stage.skip.skip_groups is not None:
            yield group_sizes(recipe, stage.skip)
        elif earlier is not None:
            kept = next((old.skip for old in earlier.stages if old.name == stage.name), None)
            if kept is not None and kept.selection == "balanced":
                yield group_sizes(earlier, kept)
