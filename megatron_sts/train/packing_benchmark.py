"""What packing saves of a stage's step, against padding side by side, over the same samples in one run.

How long samples are, and which of them make a step, is the data's; what they say is made up, so that neither pictures
nor weights are read.
"""

import statistics
from dataclasses import dataclass, field

from megatron_sts.config import Recipe, StageConfig, keys_of_stage
from megatron_sts.parallel.device import device_name
from megatron_sts.parallel.groups import Place, start_groups
from megatron_sts.train.benchmark import Say, Stepper
from megatron_sts.train.comparison import Comparison
from megatron_sts.train.stage_data import StageData
from megatron_sts.train.step_input import StepInput

_WAYS = {"padded": False, "packed": True}


@dataclass
class _Run:
    """One way's data, and its measurements: seconds of each step's repeats, the most bytes of any."""

    data: StageData
    times: dict[int, list[float]] = field(default_factory=dict)
    memory: int = 0

    def figures(self) -> dict[str, float]:
        """Over the steps that were timed; a step's time is the median of its repeats."""
        shapes = [self.data.shape(self.data.planner.plan(step)) for step in self.times]
        seconds = sum(map(statistics.median, self.times.values()))
        tokens, positions = sum(shape.tokens for shape in shapes), sum(shape.rows * shape.length for shape in shapes)
        return {
            "step_time_s": seconds / len(shapes),
            "tokens_per_second": tokens / seconds,
            "padding": 1 - tokens / positions,
            "sequence_length": statistics.fmean(shape.length for shape in shapes),
            "peak_memory_bytes": self.memory,
        }


def measure_packing(recipe: Recipe, comparison: Comparison, say: Say) -> dict[str, object]:
    """The figures of `--suite packing`; every rank returns the same.

    runs: padded and packed. Tokens are those of samples, padding the share of the positions that are none. speedup:
    padded over packed, of step time.
    """
    stage = recipe.stage(comparison.stage)
    place = start_groups(recipe.parallel, recipe.seed)
    with keys_of_stage(stage.name):
        runs = {name: _Run(StageData(*_with_packing(recipe, stage, packing))) for name, packing in _WAYS.items()}
    total = runs["packed"].data.total_steps
    stepper = Stepper(recipe, stage, total, place, draws_weights=False)
    # A short stage has fewer steps than were asked for.
    steps = list(dict.fromkeys(comparison.steps(total)))
    for _ in range(comparison.warm_up):
        for run in runs.values():
            _time(stepper, run.data, stage, steps[0], place)
    for repeat in range(comparison.repeats):
        for number, step in enumerate(steps):
            for run in runs.values():
                seconds, memory = _time(stepper, run.data, stage, step, place)
                run.times.setdefault(step, []).append(seconds)
                run.memory = max(run.memory, memory)
            last = ", ".join(f"{name} {run.times[step][-1]:.3f} s" for name, run in runs.items())
            say(f"{repeat * len(steps) + number + 1}/{comparison.repeats * len(steps)} steps of each: {last}")
    figures = {name: run.figures() for name, run in runs.items()}
    return {
        "stage": stage.name,
        "samples": stage.batch.global_size,
        "device": device_name(),
        "layout": recipe.parallel.model_dump() | {"data": place.data_size},
        "steps": len(steps),
        "repeats": comparison.repeats,
        "runs": figures,
        "speedup": figures["padded"]["step_time_s"] / figures["packed"]["step_time_s"],
    }


def _with_packing(recipe: Recipe, stage: StageConfig, packing: bool) -> tuple[Recipe, StageConfig]:
    changed = stage.model_copy(update={"data": stage.data.model_copy(update={"packing": packing})})
    return recipe.model_copy(update={"stages": (changed,)}), changed


def _time(stepper: Stepper, data: StageData, stage: StageConfig, step: int, place: Place) -> tuple[float, int]:
    plan = data.planner.plan(step)
    shape, index = data.shape(plan), data.index
    own = data.micro_batches(step)[place.data_rank :: place.data_size]
    batches = None
    if place.first_stage or place.last_stage:
        batches = [
            stepper.batch(
                index.text_tokens[samples].tolist(),
                index.images[samples].tolist(),
                plan,
                shape.length,
                packed=shape.segments is not None,
            )
            for samples in own
        ]
    segments, text = shape.own_segments(place), data.own_text(plan, place)
    given = StepInput(plan, batches, len(own), stage.batch.micro, shape.length, segments, text)
    return stepper.timed(lambda: stepper.parts.step.run(given))
