"""Seconds of a step on real machines: products, launches, and what the ranks send to each other.

A micro-batch's pass through a virtual stage takes its FLOPs over the rate of the machine, or the host time of its
layers where that is longer, and what of its transfers nothing hides (communication.py). The simulated pipeline gives
the time of all passes; gradients and weights come to it. Left out: the optimiser's own time, loading, checkpoints, what
the host waits for between steps, and that small products reach less of the peak.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_sts.config import Recipe, StageConfig
from megatron_sts.planning.communication import Traffic, Transfer
from megatron_sts.planning.costs import MicroBatchCosts, micro_batch_costs
from megatron_sts.planning.hardware import Hardware
from megatron_sts.sts import PipelineSchedule


@dataclass(frozen=True)
class LayersRun:
    """By layer the share of the steps in which it runs, and in which it runs its MLP for text alone; visual tokens kept
    of each image."""

    run: Sequence[float]
    for_text: Sequence[float]
    visual_tokens: int


@dataclass(frozen=True)
class Launches:
    """Of a micro-batch, where they weigh most: host time of the layers on a pipeline rank, GPU time of their products.

    least_micro: samples of a micro-batch whose products take as long.
    """

    host: float
    device: float
    least_micro: int


@dataclass(frozen=True)
class StepSeconds:
    """A mean step. products: of the same pipeline, with nothing but its products. transfers: by kind, on the rank that
    sends most."""

    total: float
    products: float
    transfers: dict[str, Transfer]
    launches: Launches


def step_seconds(
    recipe: Recipe, stage: StageConfig, data_parallel: int, hardware: Hardware, layers: LayersRun
) -> StepSeconds:
    """A step of mean samples, with the mean number of layers on each virtual stage."""
    parallel = recipe.parallel
    micro_batches = stage.batch.global_size // (stage.batch.micro * data_parallel)
    schedule = PipelineSchedule(parallel.pipeline, parallel.virtual_pipeline, micro_batches)
    counts = [
        (sum(layers.run[layer] for layer in held), sum(layers.for_text[layer] for layer in held))
        for held in parallel.layers_of_stages(recipe.architecture.language.layers)
    ]
    costs = micro_batch_costs(recipe, stage, layers.visual_tokens)
    traffic = Traffic(recipe, stage, data_parallel, hardware, layers.visual_tokens)
    products: list[list[float]] = []
    seconds: list[list[float]] = []
    sent = [dict[str, Transfer]() for _ in counts]
    for backward, flops in enumerate(costs.of_stages(counts)):
        products.append([one / hardware.rate(recipe.precision) for one in flops])
        seconds.append([])
        for place, (run, for_text) in enumerate(counts):
            transfers = {
                "tensor": traffic.tensor(run, for_text, bool(backward)),
                "context": traffic.context(run, bool(backward)),
                "pipeline": traffic.pipeline(),
            }
            # Of three passes that cost alike, two are backward.
            launched = (1 + backward) / 3 * run * hardware.launch_seconds(recipe.precision)
            waited = sum(transfer.exposed for transfer in transfers.values())
            seconds[-1].append(max(products[-1][place], launched) + waited)
            for kind, transfer in transfers.items():
                sent[place][kind] = sent[place].get(kind, Transfer()) + transfer.times(micro_batches)
    of_ranks = [range(rank, len(counts), parallel.pipeline) for rank in range(parallel.pipeline)]
    forward, back = ([sum(way[place] for place in places) for places in of_ranks] for way in seconds)
    most = {
        kind: _most([sum((sent[place][kind] for place in places), Transfer()) for places in of_ranks])
        for kind in sent[0]
    }
    most["gradients"] = _most([traffic.gradients(rank, back[rank]) for rank in range(parallel.pipeline)])
    most["weights"] = _most([traffic.weights(rank, forward[rank]) for rank in range(parallel.pipeline)])
    return StepSeconds(
        total=schedule.simulate(*seconds).total + most["gradients"].exposed + most["weights"].exposed,
        products=schedule.simulate(*products).total,
        transfers={kind: transfer for kind, transfer in most.items() if transfer.bytes},
        launches=_launches(recipe, stage, hardware, costs, counts),
    )


def _most(found: Sequence[Transfer]) -> Transfer:
    return max(found, key=lambda transfer: transfer.seconds)


def _launches(
    recipe: Recipe, stage: StageConfig, hardware: Hardware, costs: MicroBatchCosts, counts: list[tuple[float, float]]
) -> Launches:
    run, for_text = (sum(count[part] for count in counts) for part in (0, 1))
    flops = (run - for_text) * costs.layer.total + for_text * costs.layer_for_text.total
    layers_of_rank = run / recipe.parallel.pipeline
    device = flops / recipe.parallel.pipeline / hardware.rate(recipe.precision)
    host = layers_of_rank * hardware.launch_seconds(recipe.precision)
    return Launches(host, device, math.ceil(stage.batch.micro * host / device - 1e-9))
