"""What a stage of training takes of real machines: activations, and seconds of a step."""

from dataclasses import dataclass

from megatron_sts.config import Recipe
from megatron_sts.planning.activations import RankActivations, largest_activations
from megatron_sts.planning.fit import FitStage, fullest_rank
from megatron_sts.planning.hardware import Hardware
from megatron_sts.planning.scope import PlannedStage
from megatron_sts.planning.sparsity import Sparsity, strided
from megatron_sts.planning.step_time import LayersRun, StepSeconds, step_seconds
from megatron_sts.sts import StepPlan, full_plan

# Steps in whose plans the one is looked for that keeps most.
_ACTIVATION_STEPS = 400


@dataclass(frozen=True)
class Usage:
    """Of one stage of training.

    activations, dense_activations: by pipeline stage, of each rank, with mean samples, in the step that keeps most and
    in a dense one. fullest: bytes of the rank that holds most, with the longest samples (fit.py). seconds: of a mean
    step, and dense.
    """

    activations: tuple[RankActivations, ...]
    dense_activations: tuple[RankActivations, ...]
    fullest: float
    seconds: StepSeconds
    dense_seconds: StepSeconds
    fit: FitStage


def stage_usage(
    resolved: Recipe, planned: PlannedStage, data_parallel: int, found: Sparsity, hardware: Hardware
) -> Usage:
    """Of a stage whose texts' length is known; `resolved` has its groups resolved."""
    stage, layers = planned.stage, resolved.architecture.language.layers
    micro_batches = stage.batch.global_size // (stage.batch.micro * data_parallel)
    planner = planned.planner(resolved)
    plans = [planner.plan(step) for step in strided(planned.steps, _ACTIVATION_STEPS)]
    dense = full_plan(found.visual_tokens_dense)
    fullest = max(plans, key=_amount)
    mean = LayersRun(found.run_share, found.text_share, found.visual_tokens)
    all_run = LayersRun([1.0] * layers, [0.0] * layers, found.visual_tokens_dense)
    ranks = range(resolved.parallel.pipeline)
    return Usage(
        activations=tuple(largest_activations(resolved, stage, rank, micro_batches, plans) for rank in ranks),
        dense_activations=tuple(largest_activations(resolved, stage, rank, micro_batches, [dense]) for rank in ranks),
        fullest=fullest_rank(resolved, stage, data_parallel, fullest),
        seconds=step_seconds(resolved, stage, data_parallel, hardware, mean),
        dense_seconds=step_seconds(resolved, stage, data_parallel, hardware, all_run),
        fit=FitStage(stage.name, planned.steps, fullest, mean),
    )


def _amount(plan: StepPlan) -> tuple[int, int, int]:
    """By what a plan keeps of activations: the first counts most."""
    return plan.visual_tokens, -len(plan.skipped_layers), -len(plan.layers_skipped_for_visual)
