"""How often the host waits for the device in a step, and where the time of a step goes."""

import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch.profiler import profile

from megatron_sts.config import Recipe
from megatron_sts.parallel.device import has_gpu, synchronize
from megatron_sts.parallel.groups import start_groups
from megatron_sts.sts import StagePlanner
from megatron_sts.train.benchmark import Stepper
from megatron_sts.train.step_input import StepInput
from tests.gpu.kernels import activities, kernels_of, synchronisations, times_text
from tests.gpu.recipes import timed_recipe
from tests.gpu.slot import Slot
from tests.gpu.speed import release

PART = "waits"
_LAYERS = 4
_SHOWN = 15


def waits(slot: Slot) -> None:
    """A step of the recipe's own tune stage, sparse, in bf16: its waits by place, then its kernels.

    profile.txt has the longest, trace.json.gz all of them, for chrome://tracing or Perfetto.
    """
    # Four micro-batches: enough to see one after another, and a small trace.
    layers = min(_LAYERS, slot.size.layers[-1])
    recipe = timed_recipe(slot, f"model.architecture.language.layers={layers}")
    stage = recipe.stage("tune")
    batch = stage.batch.model_copy(update={"global_size": min(stage.batch.global_size, 4 * stage.batch.micro)})
    recipe = recipe.with_stage(stage.model_copy(update={"batch": batch}))
    stepper, samples = prepared(recipe, "tune")
    for _ in range(3):
        stepper.parts.step.run(samples)
    with slot.attempt(PART, "waits"):
        places = _waits_of(partial(stepper.parts.step.run, samples))
        slot.record(PART, "waits of a step", number=sum(places.values()), places=dict(places.most_common()))
    with profile(activities=activities()) as recorded:
        seconds, _ = stepper.time(samples.plan, samples)
    kernels = kernels_of(recorded)
    slot.record(
        PART,
        "profile",
        seconds=seconds,
        busy=sum(kernel.seconds for kernel in kernels),
        synchronisations=synchronisations(recorded),
        longest=[[kernel.name[:100], kernel.count, kernel.seconds] for kernel in kernels[:_SHOWN]],
    )
    skipped = len(samples.plan.skipped_layers)
    title = f"tune, {skipped} of {layers} layers skipped, bf16: a step of {seconds:.4f} s, profiled"
    (slot.out / "profile.txt").write_text(times_text(title, kernels, seconds, _SHOWN) + "\n")
    # Beside, so that a trace that is there is whole.
    trace = slot.scratch / "trace.json.gz"
    recorded.export_chrome_trace(str(trace))
    (slot.out / trace.name).write_bytes(trace.read_bytes())
    del stepper, samples
    release()


def prepared(recipe: Recipe, stage: str) -> tuple[Stepper, StepInput]:
    """A stepper, and samples under the plan of the middle of the stage."""
    total = 100
    place = start_groups(recipe.parallel, recipe.seed)
    stepper = Stepper(recipe, recipe.stage(stage), total, place, draws_weights=False)
    plan = StagePlanner(recipe, recipe.stage(stage), total, total).plan(total // 2)
    return stepper, stepper.step_input(plan)


def _waits_of(run: Callable[[], object]) -> Counter[str]:
    """By file and line, what torch warns of; nothing on a CPU."""
    if not has_gpu():
        run()
        return Counter()
    synchronize()
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    called = [one for one in found if "synchroniz" in str(one.message)]
    return Counter(f"{Path(one.filename).parent.name}/{Path(one.filename).name}:{one.lineno}" for one in called)
