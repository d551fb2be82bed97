"""How fast a stage of training would be: the simulated steps of its plan, against the dense step."""

from dataclasses import dataclass

from megatron_sts.config import Recipe, Selection
from megatron_sts.errors import ConfigError
from megatron_sts.planning.costs import micro_batch_costs
from megatron_sts.planning.scope import PlannedStage
from megatron_sts.planning.sparsity import Sparsity, strided
from megatron_sts.sts import PipelineSchedule, StepPlan, StepTime, resolve_skip_groups

# Steps whose time is simulated, in even strides, and the passes that may go into all of them.
_SIMULATED_STEPS = 400
_SIMULATED_PASSES = 1_000_000
# Of a share.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Prediction:
    """Means over a stage's simulated steps; times in FLOPs of one rank.

    busy: share of step_time that each pipeline rank works. retained_saving: (1 - T / T_dense) / (1 - W / W_dense), T
    the step time and W the work of all ranks; None where no work is saved.
    """

    dense_step_time: float
    dense_busy: tuple[float, ...]
    step_time: float
    busy: tuple[float, ...]
    retained_saving: float | None

    @property
    def speedup(self) -> float:
        """Of a mean step, over the dense step on the same layout."""
        return self.dense_step_time / self.step_time

    @property
    def bubble(self) -> float:
        """Share of the ranks' time in which they wait."""
        return 1.0 - sum(self.busy) / len(self.busy)

    @property
    def dense_bubble(self) -> float:
        """The same of the dense step."""
        return 1.0 - sum(self.dense_busy) / len(self.dense_busy)


class StageSimulation:
    """Simulates the steps of one stage of training, on any split of the layers and with either selection."""

    def __init__(
        self, recipe: Recipe, earlier: Recipe | None, planned: PlannedStage, micro_batches: int, found: Sparsity
    ):
        """`recipe` has its groups as the user wrote them. earlier: as for `resolve_skip_groups`."""
        parallel, stage = recipe.parallel, planned.stage
        self._recipe, self._earlier, self._planned = recipe, earlier, planned
        self._found: dict[tuple[Selection | None, tuple[int, ...] | None], Prediction | None] = {}
        self.costs = micro_batch_costs(recipe, stage, found.visual_tokens)
        self._teacher_costs = self.costs
        if found.teacher is not None:
            self._teacher_costs = micro_batch_costs(recipe, stage, found.teacher.visual_tokens)
        self.schedule = PipelineSchedule(parallel.pipeline, parallel.virtual_pipeline, micro_batches)
        self._dense_costs = micro_batch_costs(recipe, stage, recipe.architecture.visual_tokens)
        self._steps = strided(planned.steps, max(20, min(_SIMULATED_STEPS, _SIMULATED_PASSES // self.schedule.passes)))

    def predict(self, selection: Selection | None = None, split: tuple[int, ...] | None = None) -> Prediction | None:
        """The stage with another selection or split than the recipe's; None where the recipe cannot have them."""
        if (selection, split) not in self._found:
            self._found[selection, split] = self._predicted(selection, split)
        return self._found[selection, split]

    def _predicted(self, selection: Selection | None, split: tuple[int, ...] | None) -> Prediction | None:
        try:
            recipe = resolve_skip_groups(self._variant(selection, split), self._earlier)
        except ConfigError:
            return None
        planner = self._planned.planner(recipe)
        stages = recipe.parallel.layers_of_stages(recipe.architecture.language.layers)
        dense = self.schedule.simulate(*self._dense_costs.of_stages([(len(stage), 0) for stage in stages]))
        steps = self._simulated(stages, [planner.plan(step) for step in self._steps])
        teachers = [plan for step in self._steps if (plan := planner.teacher_plan(step)) is not None]
        passes = [*steps, *self._simulated(stages, teachers, forward_only=True)]
        total = sum(one.total for one in passes) / len(steps)
        busy = [sum(one.busy[rank] for one in passes) / len(steps) for rank in range(len(dense.busy))]
        work_saved = 1.0 - sum(busy) / sum(dense.busy)
        return Prediction(
            dense_step_time=dense.total,
            dense_busy=tuple(work / dense.total for work in dense.busy),
            step_time=total,
            busy=tuple(work / total for work in busy),
            retained_saving=(1.0 - total / dense.total) / work_saved if work_saved > _ROUNDING else None,
        )

    def _simulated(self, stages: list[range], plans: list[StepPlan], forward_only: bool = False) -> list[StepTime]:
        """The steps of these plans, or their teachers' forward passes; those that run as many layers on every virtual
        stage are simulated once."""
        run, costs = [plan.layers_run(stages) for plan in plans], self._teacher_costs if forward_only else self.costs
        found = {}
        for counts in set(run):
            forward, backward = costs.of_stages(counts)
            found[counts] = self.schedule.simulate(forward, [0.0] * len(backward) if forward_only else backward)
        return [found[counts] for counts in run]

    def _variant(self, selection: Selection | None, split: tuple[int, ...] | None) -> Recipe:
        recipe = self._recipe
        if split is not None:
            parallel = recipe.parallel.model_copy(update={"layers_per_stage": split})
            recipe = recipe.model_copy(update={"parallel": parallel})
        stage = self._planned.stage
        if selection is None or all(skip.selection == selection for skip in stage.skip):
            return recipe
        skip = stage.selecting(selection).skip
        stages = [old.model_copy(update={"skip": skip}) if old.name == stage.name else old for old in recipe.stages]
        return recipe.model_copy(update={"stages": tuple(stages)})
