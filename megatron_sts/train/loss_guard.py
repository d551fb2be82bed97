"""Before the first update of a stage: does leaving layers out harm the weights that it starts from?

A pretrained model can lose more by a few skipped layers than a stage of training mends. So the loss of a few samples is
measured with and without them, by forward passes alone, while every weight is still as it was.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from megatron_sts.config import Recipe, SkipConfig, StageConfig
from megatron_sts.errors import ConfigError
from megatron_sts.parallel.groups import Place
from megatron_sts.sts import StepPlan
from megatron_sts.sts.groups import layers_of_groups
from megatron_sts.sts.redundancy import largest_alpha
from megatron_sts.sts.rises import measurements
from megatron_sts.train.evaluation_step import EvaluationStep
from megatron_sts.train.held_out import HeldOutSamples
from megatron_sts.train.layer_rises import LayerRises
from megatron_sts.train.stage_data import StageData

# The draws of so many steps are looked at: one alone may miss the layer that matters.
_PLANS = 4


@dataclass(frozen=True)
class LossRise:
    """Mean losses of the same samples, in nats: dense with all layers and visual tokens, sparse the highest of a few
    plans, `plan` the one that gave it."""

    dense: float
    sparse: float
    plan: StepPlan

    @property
    def rise(self) -> float:
        """By how much leaving out raises the loss."""
        return self.sparse - self.dense


def check_loss_rise(
    recipe: Recipe,
    stage: StageConfig,
    data: StageData,
    evaluation: EvaluationStep,
    rises: LayerRises,
    place: Place,
    say: Callable[[str], None],
) -> None:
    """Raise ConfigError where the layers that a stage skips first raise the loss by more than `skip.max_loss_rise`.

    All ranks together, before the first step; no weight is changed. With `accept_loss_rise` the rise is only told. A
    model with fresh weights passes: its loss is that of guessing, with all layers or with few.
    """
    limits = [skip.max_loss_rise for skip in stage.skip if not skip.accept_loss_rise]
    plans = first_sparse_plans(data)
    if not stage.skip or not plans:
        return
    numbers = data.sampler.samples_of_step(0)[: stage.batch.micro * place.data_size]
    samples = HeldOutSamples(recipe, data, place, numbers, stage.batch.micro)
    found = _highest(plans, samples, data, evaluation)
    if not limits or not found.rise > min(limits):
        say(
            f"{stage.name}: before training, skipping moves the loss of {len(samples)} samples from {found.dense:.3f} "
            f"to at most {found.sparse:.3f}"
        )
        return
    milder = _within(recipe, stage, samples, data, evaluation, rises, found.dense)
    error = ConfigError(_refusal(stage, found, min(limits), milder))
    error.met_by_all = True
    raise error


def first_sparse_plans(data: StageData) -> list[StepPlan]:
    """The plans of the first steps that leave layers out, a few of them."""
    plans = map(data.planner.plan, range(data.total_steps))
    return list(islice((plan for plan in plans if plan.skipped_layers or plan.layers_skipped_for_visual), _PLANS))


def _highest(plans: list[StepPlan], samples: HeldOutSamples, data: StageData, evaluation: EvaluationStep) -> LossRise:
    dense = evaluation.losses(data.planner.dense_plan(0), samples).mean
    losses = [(evaluation.losses(plan, samples).mean, number) for number, plan in enumerate(plans)]
    # What is not a number is the highest of all.
    sparse, number = max(losses, key=lambda pair: (math.isnan(pair[0]), pair[0]))
    return LossRise(dense, sparse, plans[number])


def _within(
    recipe: Recipe,
    stage: StageConfig,
    samples: HeldOutSamples,
    data: StageData,
    evaluation: EvaluationStep,
    rises: LayerRises,
    dense: float,
) -> str | None:
    """A skip block, as YAML to paste, whose first plans keep within the limits; None where none was found.

    Tried in this order: only the MLP of visual tokens, by redundancy, at falling rates; then the recipe's own at
    falling rates. Rises that are not at hand are measured as a start from the block would measure them, so that its
    plans are those that were tried: one forward pass over the held-out samples for each layer, and one more.
    """
    for skip in _milder(recipe, stage, rises):
        plans = first_sparse_plans(data.with_skip((skip,)))
        if all(evaluation.losses(plan, samples).mean - dense <= skip.max_loss_rise for plan in plans):
            values = skip.model_dump(mode="json", exclude_defaults=True, exclude={"skip_groups", "rises"})
            text = ", ".join(f"{name}: {value}" for name, value in values.items())
            return f"skip: {{{text}}}"
    return None


def _milder(recipe: Recipe, stage: StageConfig, rises: LayerRises) -> Iterator[SkipConfig]:
    first = stage.skip[0]
    if stage.data.has_images:
        own = stage.skip_of("visual")
        # What the layers are worth for all tokens says nothing of their MLP for visual ones.
        known = own.rises if own is not None and own.by == "redundancy" else None
        plain = {"epsilon": 0.0, "schedule": "constant", "parameters": "frozen", "measure_every": None}
        visual = first.model_copy(update={"tokens": "visual", "by": "redundancy", "rises": known, **plain})
        (visual,) = rises.measured(stage.model_copy(update={"skip": (visual,)}), 0).skip
        found = measurements(visual, recipe.architecture.language.layers)[-1].rises
        largest = largest_alpha(found, visual, layers_of_groups(recipe, visual))
        for alpha in (0.75, 0.5, 0.25):
            if alpha <= largest:
                yield visual.model_copy(update={"alpha": alpha})
    for part in (2, 4, 8):
        yield first.model_copy(update={"alpha": round(first.alpha / part, 4)})


def _refusal(stage: StageConfig, found: LossRise, limit: float, milder: str | None) -> str:
    plan, left_out = found.plan, []
    if plan.skipped_layers:
        left_out.append(f"the layers {_listed(plan.skipped_layers)}")
    if plan.layers_skipped_for_visual:
        left_out.append(f"the MLP of visual tokens in the layers {_listed(plan.layers_skipped_for_visual)}")
    remedy = f"Within it, measured in the same way: `{milder}`. " if milder else ""
    return (
        f"stages.{stage.name}.skip: leaving out {' and '.join(left_out)}, as step {plan.step + 1} does, raises the "
        f"loss of the weights that the stage starts from by {found.rise:.3f} nats, from {found.dense:.3f} to "
        f"{found.sparse:.3f}; max_loss_rise is {limit:g}. No weight was changed. {remedy}tools/probe.py measures what "
        f"each layer is worth; {stage.skip_field(stage.skip[0])}.accept_loss_rise=true trains all the same"
    )


def _listed(layers: frozenset[int]) -> str:
    return ", ".join(map(str, sorted(layers)))
