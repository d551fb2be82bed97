"""The loss of held-out samples while a stage trains: with all layers and visual tokens, as the model will be used, and
under the plan that the step trained with.
"""

from dataclasses import dataclass

from megatron_sts.config import Recipe, StageConfig
from megatron_sts.parallel.groups import Place
from megatron_sts.sts import StepPlan
from megatron_sts.train.evaluation_step import EvaluationStep
from megatron_sts.train.held_out import HeldOutSamples
from megatron_sts.train.stage_data import StageData


@dataclass(frozen=True)
class ValidationLosses:
    """Mean loss of a supervised token, in nats, the same on every layout. sparse: None where the plan was dense."""

    dense: float
    sparse: float | None


class Validation:
    """Measures a stage's validation losses; all ranks together."""

    def __init__(self, recipe: Recipe, stage: StageConfig, data: StageData, evaluation: EvaluationStep, place: Place):
        """The samples are the same in every call and on every layout: `validation.samples` of them, evenly spread."""
        # With keep_best each checkpoint that is not one of a stop has its loss.
        self._every = (recipe.validation.every_steps, recipe.checkpoint.every_steps if recipe.keep_best else None)
        self._evaluation, self._planner = evaluation, data.planner
        held_out = data.validation
        self._samples: HeldOutSamples | None = None
        if held_out is not None:
            count = min(recipe.validation.samples, len(held_out.samples))
            numbers = [len(held_out.samples) * place // count for place in range(count)]
            self._samples = HeldOutSamples(recipe, held_out, place, numbers, stage.batch.micro)

    def is_due(self, done: int, total: int) -> bool:
        """Whether the losses are to be measured after `done` of `total` steps."""
        is_asked = done == total or any(every is not None and done % every == 0 for every in self._every)
        return self._samples is not None and is_asked

    def measure(self, plan: StepPlan) -> ValidationLosses:
        """The losses of now; plan: of the step that was done last."""
        assert self._samples is not None
        dense = self._planner.dense_plan(plan.step)
        loss = self._evaluation.losses(dense, self._samples).mean
        return ValidationLosses(loss, None if plan == dense else self._evaluation.losses(plan, self._samples).mean)
