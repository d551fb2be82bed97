"""Times ways to train each stage at 7B shapes, all on one model, step by step in turn."""

import gc
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

from megatron_sts.config import Recipe
from megatron_sts.model.precision import Machine, what_runs
from megatron_sts.parallel.groups import start_groups
from megatron_sts.sts import StagePlanner, StepPlan
from megatron_sts.train.benchmark import Stepper
from megatron_sts.train.comparison import Comparison
from megatron_sts.train.step_input import StepInput
from tests.gpu.recipes import timed_recipe
from tests.gpu.slot import Slot
from tests.gpu.ways import LINE, STAGES, Way


@dataclass
class _Timed:
    """A way, the plans of its steps, and the samples that all of them train on, by visual tokens of an image."""

    way: Way
    plans: list[StepPlan]
    samples: dict[int, StepInput] = field(default_factory=dict)


def speed(slot: Slot) -> None:
    """Both stages: dense, sparse, FP8, both."""
    for stage, ways in STAGES.items():
        _with_layers_that_fit(slot, "speed", stage, ways)


def linear(slot: Slot) -> None:
    """Step time against the layers that are skipped."""
    _with_layers_that_fit(slot, "linear", "tune", LINE)


def release() -> None:
    """Give back the memory of what is no longer used."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _with_layers_that_fit(slot: Slot, part: str, stage: str, ways: Iterable[Way]) -> None:
    for layers in slot.size.layers:
        try:
            _time_in_turn(slot, part, timed_recipe(slot, f"model.architecture.language.layers={layers}"), stage, ways)
            return
        except torch.OutOfMemoryError:
            traceback.print_exc()
            slot.record(part, "out of memory", stage=stage, layers=layers)
        release()
    slot.check(part, f"{stage} fits", False)


def _time_in_turn(slot: Slot, part: str, recipe: Recipe, stage: str, ways: Iterable[Way]) -> None:
    problem = Machine.here().engine_problem
    if problem is not None and any(way.precision == "fp8" for way in ways):
        slot.check(part, f"{stage} in FP8", False, error=problem)
        ways = [way for way in ways if way.precision == "bf16"]
    fp8 = any(way.precision == "fp8" for way in ways)
    recipe = recipe.model_copy(update={"precision": "fp8" if fp8 else "bf16"})
    comparison = Comparison(
        stage, (), slot.size.plans, slot.size.repeats, slot.size.warm_up, {way.name: way.change for way in ways}
    )
    total = comparison.total_steps(recipe)
    timed = []
    for way in ways:
        changed = comparison.recipe_of(way.name, recipe)
        planner = StagePlanner(changed, changed.stage(stage), total, total)
        timed.append(_Timed(way, [planner.plan(step) for step in comparison.steps(total)]))
    place = start_groups(recipe.parallel, recipe.seed)
    stepper = Stepper(recipe, recipe.stage(stage), total, place, draws_weights=False)
    slot.record(part, "model", stage=stage, layers=recipe.architecture.language.layers, runs_on=what_runs(recipe))
    for turn in range(slot.size.warm_up + slot.size.repeats):
        for number in range(slot.size.plans if turn >= slot.size.warm_up else 1):
            for one in list(timed):
                try:
                    _step(slot, part, stepper, one, number, warms_up=turn < slot.size.warm_up)
                except torch.OutOfMemoryError:
                    raise
                except Exception as error:
                    # The others go on without it.
                    traceback.print_exc()
                    slot.check(part, f"{stage}, {one.way.name}", False, error=f"{type(error).__name__}: {error}"[:2000])
                    timed.remove(one)
    del stepper, timed
    release()


def _step(slot: Slot, part: str, stepper: Stepper, timed: _Timed, number: int, warms_up: bool) -> None:
    plan, way = timed.plans[number], timed.way
    if stepper.precision != way.precision:
        stepper.take_precision(way.precision)
    # Made once: noise for all images of a step takes a CPU as long as the step takes the GPU.
    samples = timed.samples.get(plan.visual_tokens) or stepper.step_input(plan)
    timed.samples[plan.visual_tokens] = samples
    seconds, memory = stepper.time(plan, samples)
    slot.record(
        part,
        "warm-up" if warms_up else "step",
        stage=stepper.stage.name,
        setting=way.setting,
        precision=way.precision,
        step=plan.step,
        seconds=seconds,
        memory=memory,
        flops=stepper.flops(plan),
        samples=stepper.stage.batch.global_size,
        length=samples.length,
        layers_skipped=len(plan.skipped_layers),
    )
