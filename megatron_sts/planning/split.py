"""The split of the layers over the pipeline that evens its load: tower and logits weigh on the first and last stage."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from megatron_sts.config import Recipe
from megatron_sts.errors import ConfigError
from megatron_sts.planning.costs import MicroBatchCosts
from megatron_sts.sts import PipelineSchedule, resolve_skip_groups, settled_groups

# A split that gains less is not worth another layout.
_LEAST_GAIN = 1e-3
# Passes of micro-batches that the search may simulate: a third of a second or so.
_SIMULATED_PASSES = 1_000_000


@dataclass(frozen=True)
class StageLoad:
    """A stage of training: its steps, their schedule, and what a micro-batch costs with every layer running."""

    steps: int
    schedule: PipelineSchedule
    costs: MicroBatchCosts

    @property
    def micro_batches(self) -> int:
        """Of all steps."""
        return self.steps * self.schedule.micro_batches

    def time(self, counts: Sequence[int]) -> float:
        """Simulated time of all steps with so many layers on each virtual stage."""
        return self.steps * self.schedule.simulate(*self.costs.of_stages([(count, 0) for count in counts])).total


def best_split(recipe: Recipe, earlier: Recipe | None, loads: Sequence[StageLoad]) -> tuple[int, ...]:
    """Layers of each virtual stage, in order of depth, that take little time over these stages of training.

    `recipe` has the groups as the user wrote them. earlier: as for `resolve_skip_groups`.

    Layers go one by one (with groups of layers that the recipe fixes: group by group) to the rank with the least
    load, there to the chunk with the least. That is done for every least number of layers that a virtual stage may
    have, because groups of very different sizes cannot share a count. From the fastest of these splits layers move
    between any two virtual stages as long as the simulated time falls. Only splits whose groups are in order count.
    The recipe's own split where nothing gains 0.1%.
    """
    parallel, layers = recipe.parallel, recipe.architecture.language.layers
    own = tuple(len(stage) for stage in parallel.layers_of_stages(layers))
    unit = _unit(recipe, earlier)
    if parallel.pipeline == 1 or unit is None:
        return own

    search = _Search(recipe, earlier, loads, unit)
    starts = [search.filled(least) for least in range(1, layers // (unit * len(own)) + 1)]
    best = search.improved(min([own, *filter(search.usable, starts)], key=search.time))
    return best if search.time(best) < (1 - _LEAST_GAIN) * search.time(own) else own


class _Search:
    """The ways to split the layers, what they take, and which can be used."""

    def __init__(self, recipe: Recipe, earlier: Recipe | None, loads: Sequence[StageLoad], unit: int):
        self._recipe, self._earlier, self._loads, self._unit = recipe, earlier, loads, unit
        self._pipeline = recipe.parallel.pipeline
        self._stages = self._pipeline * recipe.parallel.virtual_pipeline
        self._layer = sum(load.micro_batches * load.costs.layer.total for load in loads)
        self._extra = [0.0] * self._stages
        self._extra[0] += sum(load.micro_batches * load.costs.first.total for load in loads)
        self._extra[-1] += sum(load.micro_batches * load.costs.last.total for load in loads)
        self._left = _SIMULATED_PASSES
        self._times: dict[tuple[int, ...], float] = {}

    def time(self, counts: tuple[int, ...]) -> float:
        """Simulated time of all stages of training."""
        if counts not in self._times:
            self._times[counts] = sum(load.time(counts) for load in self._loads)
            self._left -= sum(load.schedule.passes for load in self._loads)
        return self._times[counts]

    def usable(self, counts: tuple[int, ...]) -> bool:
        """Whether all groups are in order on a split."""
        parallel = self._recipe.parallel.model_copy(update={"layers_per_stage": counts})
        try:
            resolve_skip_groups(self._recipe.model_copy(update={"parallel": parallel}), self._earlier)
        except ConfigError:
            return False
        return True

    def filled(self, least: int) -> tuple[int, ...]:
        """Units of layers handed out one by one to where the load is least; every stage begins with `least`."""
        counts = [self._unit * least] * self._stages
        for _ in range(self._recipe.architecture.language.layers // self._unit - least * self._stages):
            # Of equals the last: it keeps the activations of the fewest micro-batches.
            stages = reversed(range(self._stages))
            counts[min(stages, key=lambda stage: self._load(counts, stage))] += self._unit
        return tuple(counts)

    def improved(self, counts: tuple[int, ...]) -> tuple[int, ...]:
        """The split with units moved between two stages as long as that pays, within a bound on what is simulated."""
        while self._left > 0:
            better = next((moved for moved in self._moves(counts) if self._pays(moved, counts)), None)
            if better is None:
                break
            counts = better
        return counts

    def _pays(self, moved: tuple[int, ...], counts: tuple[int, ...]) -> bool:
        return self._left > 0 and self.time(moved) < self.time(counts) and self.usable(moved)

    def _moves(self, counts: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        """Splits with one unit moved, from where the load is most to where it is least first."""
        by_load = sorted(range(self._stages), key=lambda stage: self._load(counts, stage))
        for source in reversed(by_load):
            for target in by_load:
                if source != target and counts[source] > self._unit:
                    moved = list(counts)
                    moved[source] -= self._unit
                    moved[target] += self._unit
                    yield tuple(moved)

    def _load(self, counts: Sequence[int], stage: int) -> tuple[float, float]:
        """Load of the stage's rank and of the stage."""
        chunks = range(stage % self._pipeline, self._stages, self._pipeline)
        own = sum(self._extra[chunk] + self._layer * counts[chunk] for chunk in chunks)
        return own, self._extra[stage] + self._layer * counts[stage]


def _unit(recipe: Recipe, earlier: Recipe | None) -> int | None:
    """Layers that can only move together, because groups end there; None where groups leave no other split."""
    balanced = [(stage, skip) for stage in recipe.stages for skip in stage.skip if skip.selection == "balanced"]
    settled = filter(None, (settled_groups(recipe, stage, skip, earlier) for stage, skip in balanced))
    fixed = [set(sizes) for sizes in settled]
    if any(len(sizes) > 1 for sizes in fixed):
        return None
    return math.lcm(*(size for sizes in fixed for size in sizes))
