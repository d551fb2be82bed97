"""What a layer costs the host: where the GPU has less to do for it, it waits, and sparsity saves nothing."""

import statistics
import time
from dataclasses import replace
from typing import Any

from megatron_sts.config import Recipe
from megatron_sts.model.precision import Machine
from megatron_sts.parallel.device import has_gpu, synchronize
from megatron_sts.train.benchmark import Stepper
from megatron_sts.train.step_input import StepInput
from tests.gpu.recipes import checked_recipe
from tests.gpu.slot import Slot
from tests.gpu.speed import release
from tests.gpu.waits import prepared

PART = "host"


def host(slot: Slot) -> None:
    """Milliseconds of the host for a layer, forward and backward, in bf16 and FP8, and with CUDA graphs.

    One micro-batch of few rows of a narrow model, so that kernels end before the next is launched. The difference of a
    pass with all layers and one with half of them.
    """
    precisions = ["bf16"] if Machine.here().engine_problem else ["bf16", "fp8"]
    # Refused without a GPU.
    graphs_are_offered = "cuda_graphs" in Recipe.model_fields and has_gpu()
    for graphs in ("none", "layers") if graphs_are_offered else ("none",):
        changes: dict[str, Any] = {} if graphs == "none" else {"cuda_graphs": graphs}
        for precision in precisions:
            with slot.attempt(PART, f"{precision}, CUDA graphs {graphs}"):
                recipe = checked_recipe(slot, "host", 4, precision=precision, **changes)
                stepper, samples = prepared(recipe, "tune")
                layers = recipe.architecture.language.layers
                half = replace(samples.plan, skipped_layers=frozenset(range(1, layers, 2)))
                whole, less = (_seconds(slot, stepper, replace(samples, plan=plan)) for plan in (samples.plan, half))
                slot.record(
                    PART,
                    "host time",
                    precision=precision,
                    cuda_graphs=graphs,
                    layer_ms=(whole - less) / len(half.skipped_layers) * 1e3,
                    pass_ms=whole * 1e3,
                    layers=layers,
                )
                del stepper, samples
                release()


def _seconds(slot: Slot, stepper: Stepper, samples: StepInput) -> float:
    times = []
    for number in range(5 * slot.size.repeats + 2):
        synchronize()
        began = time.perf_counter()
        stepper.parts.step.forward_backward(samples)
        synchronize()
        if number >= 2:
            times.append(time.perf_counter() - began)
    return statistics.median(times)
