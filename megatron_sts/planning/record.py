"""A forecast as plain values: the json of tools/plan.py. docs/planning.md has every key."""

from collections.abc import Collection, Iterator
from dataclasses import asdict
from typing import Any

from megatron_sts.config import Recipe
from megatron_sts.planning.forecast import SELECTIONS, RecipeForecast, Split, StageForecast, Work
from megatron_sts.planning.scope import PlannedStage, planned_stages, resolve
from megatron_sts.planning.sparsity import Probabilities
from megatron_sts.planning.step_time import StepSeconds


def forecast_record(found: RecipeForecast) -> dict[str, Any]:
    """One object for a recipe."""
    parallel = found.recipe.parallel
    return {
        "layout": parallel.model_dump(mode="json") | {"data_parallel": found.data_parallel},
        "layers_per_stage": list(found.own_split),
        "stages": [_stage(found.recipe, stage) for stage in found.stages],
        "proposed": _split(found.proposed),
        "cheapest_fit": _fit(found),
    }


def _fit(found: RecipeForecast) -> dict[str, Any] | None:
    if found.fit is None:
        return None
    recipe = found.fit.recipe
    return {
        "layout": recipe.parallel.model_dump(mode="json") | {"data_parallel": found.fit.data_parallel},
        "distributed": recipe.optimizer.distributed,
        "recompute": recipe.resolved()["recompute"],
        "stages": [asdict(stage) for stage in found.fit.stages],
    }


def _seconds(found: StepSeconds) -> dict[str, Any]:
    return asdict(found)


def _stage(recipe: Recipe, stage: StageForecast) -> dict[str, Any]:
    sparsity, work = stage.sparsity, stage.work
    return {
        "name": stage.planned.stage.name,
        "samples": stage.planned.samples,
        "steps": stage.planned.steps,
        "micro_batches": stage.micro_batches,
        "mean_skip_probability": sparsity.skip.overall,
        "skip_probability_by_layer": _by_layer(sparsity.skip),
        "layers_run": _counts(sparsity.layers_run),
        "mean_skip_probability_for_visual": sparsity.skip_for_visual.overall,
        "skip_probability_for_visual_by_layer": _by_layer(sparsity.skip_for_visual),
        "layers_skipped_for_visual": _counts(sparsity.layers_for_text),
        "visual_tokens": {"kept": sparsity.visual_tokens, "dense": sparsity.visual_tokens_dense},
        "padded_length": {"planned": work.length, "dense": work.length_dense} if work else None,
        "step_lengths": asdict(work.rounded) if work and work.rounded else None,
        "flops_dense": work.flops_dense if work else None,
        "flops_executed": work.flops_executed if work else None,
        "ideal_speedup": work.ideal_speedup if work else None,
        "step_seconds": _seconds(stage.usage.seconds) if stage.usage else None,
        "dense_step_seconds": _seconds(stage.usage.dense_seconds) if stage.usage else None,
        "bytes_with_longest_samples": stage.usage.fullest if stage.usage else None,
        "pipeline": {
            "per_stage": [_rank(recipe, stage, rank) for rank in range(recipe.parallel.pipeline)],
            "bubble": {"planned": work.planned.bubble, "dense": work.planned.dense_bubble} if work else None,
            "predicted_speedup": _by_selection(work, "speedup"),
            "retained_saving": _by_selection(work, "retained_saving"),
            "proposed_layers": list(work.proposed.layers) if work else None,
            "proposed": _split(work.proposed if work else None),
        },
    }


def _by_layer(found: Probabilities) -> dict[str, list[float]]:
    return {"mean": list(found.mean), "lowest": list(found.lowest), "highest": list(found.highest)}


def _counts(found: tuple[float, int, int]) -> dict[str, float]:
    return dict(zip(("mean", "fewest", "most"), found, strict=True))


def _rank(recipe: Recipe, stage: StageForecast, rank: int) -> dict[str, Any]:
    chunks = recipe.parallel.layers_of_stages(recipe.architecture.language.layers)[rank :: recipe.parallel.pipeline]
    held, work = stage.bytes[rank], stage.work
    return {
        "layers": sum(map(len, chunks)),
        "layer_ranges": [[layers.start, layers.stop - 1] for layers in chunks],
        "parameters": stage.parameters[rank],
        "flops": work.flops_by_rank[rank] if work else None,
        "share_of_step": work.planned.busy[rank] if work else None,
        "share_of_dense_step": work.planned.dense_busy[rank] if work else None,
        "bytes": held.total,
        "parameter_bytes": held.parameters,
        "gradient_bytes": held.gradients,
        "optimizer_bytes": held.optimizer,
        "activation_bytes": stage.usage.activations[rank].total if stage.usage else None,
        "dense_activation_bytes": stage.usage.dense_activations[rank].total if stage.usage else None,
    }


def _by_selection(work: Work | None, figure: str) -> dict[str, float | None]:
    found = {name: work.predictions[name] if work is not None else None for name in SELECTIONS}
    return {name: getattr(prediction, figure) if prediction is not None else None for name, prediction in found.items()}


def _split(split: Split | None) -> dict[str, Any] | None:
    if split is None:
        return None
    return {
        "layers_per_stage": list(split.layers),
        "planned_speedup": split.planned_speedup,
        "dense_speedup": split.dense_speedup,
        "balanced_speedup": split.balanced_speedup,
    }


def step_records(
    recipe: Recipe, count: int, data_parallel: int = 1, accepted: Collection[str] = ()
) -> Iterator[dict[str, Any]]:
    """The plan of the first `count` steps of every stage, one object a step: the plan that training follows.

    step: as in metrics.jsonl, steps done, from 1. visual_tokens: kept of each image. accepted, errors: as `forecast`.
    """
    resumed = resolve(recipe, data_parallel, accepted)
    for planned in planned_stages(resumed):
        yield from _stage_steps(resumed.recipe, planned, count)


def _stage_steps(recipe: Recipe, planned: PlannedStage, count: int) -> Iterator[dict[str, Any]]:
    planner = planned.planner(recipe)
    for step in range(min(count, planned.steps)):
        plan = planner.plan(step)
        yield {
            "stage": planned.stage.name,
            "step": step + 1,
            "layers_skipped": sorted(plan.skipped_layers),
            "layers_skipped_for_visual": sorted(plan.layers_skipped_for_visual),
            "visual_tokens": plan.visual_tokens,
        }
