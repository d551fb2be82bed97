"""What a new sequence length costs: plans of attention, kernels that are chosen, guards of compiled functions."""

import time
from dataclasses import replace

from megatron_sts.parallel.device import synchronize
from megatron_sts.parallel.sequence import length_multiple, round_up
from megatron_sts.train.benchmark import Stepper
from megatron_sts.train.step_input import StepInput
from tests.gpu.recipes import timed_recipe
from tests.gpu.slot import Slot
from tests.gpu.speed import release
from tests.gpu.waits import prepared

PART = "lengths"
_LAYERS = 2
_ROUNDED = 64


def lengths(slot: Slot) -> None:
    """Steps of as many new lengths against steps of one, the new ones once more, and new ones that are rounded up."""
    recipe = timed_recipe(
        slot, f"model.architecture.language.layers={_LAYERS}", "stages.tune.batch={global: 4, micro: 4}"
    )
    stepper, samples = prepared(recipe, "tune")
    (batch,) = samples.batches or ()
    step = max(length_multiple(recipe), 2)
    least = batch.tokens.size(1)
    new = [least + step * (number + 1) for number in range(slot.size.lengths)]
    # Other ones, of which most fall on the same few lengths.
    other = [round_up(length + step // 2, _ROUNDED) for length in new]
    for name, wanted in (
        ("warm-up", [least] * 3),
        ("one", [least] * len(new)),
        ("new", new),
        ("again", new),
        ("rounded", other),
    ):
        seconds = [_step(stepper, samples, length) for length in wanted]
        slot.record(
            PART, name, lengths=wanted, seconds=seconds, mean=sum(seconds) / len(seconds), distinct=len(set(wanted))
        )
    del stepper, samples
    release()


def _step(stepper: Stepper, samples: StepInput, length: int) -> float:
    plan, micro = samples.plan, samples.micro
    batch = stepper.batch([length - plan.visual_tokens] * micro, [1] * micro, plan, length)
    synchronize()
    began = time.perf_counter()
    stepper.parts.step.run(replace(samples, batches=[batch], length=length))
    synchronize()
    return time.perf_counter() - began
