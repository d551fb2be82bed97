"""What a recipe will do: each stage of training and each pipeline stage in numbers, before anything is started."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from megatron_sts.config import Recipe, Selection
from megatron_sts.planning.costs import planned_length, sample_flops
from megatron_sts.planning.fit import Fit, cheapest_fit
from megatron_sts.planning.hardware import Hardware
from megatron_sts.planning.lengths import RoundedLengths, rounded_lengths
from megatron_sts.planning.memory import RankBytes, part_parameters, rank_bytes
from megatron_sts.planning.prediction import Prediction, StageSimulation
from megatron_sts.planning.scope import PlannedStage, planned_stages, resolve
from megatron_sts.planning.sparsity import Sparsity, sparsity
from megatron_sts.planning.split import StageLoad, best_split
from megatron_sts.planning.usage import Usage, stage_usage

SELECTIONS: tuple[Selection, ...] = ("balanced", "independent")

_Stages = Sequence[tuple[PlannedStage, StageSimulation]]


@dataclass(frozen=True)
class Split:
    """A proposed split of the layers over the virtual stages, in order of depth.

    planned_speedup, dense_speedup: of the recipe's steps and of the dense step, over those on the recipe's own split.
    balanced_speedup: of balanced selection on the proposed split, over the dense step there; None where it cannot
    have balanced selection.
    """

    layers: tuple[int, ...]
    planned_speedup: float
    dense_speedup: float
    balanced_speedup: float | None


@dataclass(frozen=True)
class Work:
    """FLOPs and simulated time of a stage of training.

    length, length_dense: padded sequence of a mean sample, as planned and with all visual tokens. rounded: the
    lengths of steps. flops_dense and the executed flops_by_rank, of each pipeline stage: over the whole stage of
    training. planned: the recipe's own steps, simulated. predictions: by selection, None where this layout cannot
    have it.
    """

    length: int
    length_dense: int
    rounded: RoundedLengths | None
    flops_dense: float
    flops_by_rank: tuple[float, ...]
    simulation: StageSimulation
    planned: Prediction
    predictions: dict[str, Prediction | None]
    proposed: Split

    @property
    def flops_executed(self) -> float:
        """Over the whole stage of training."""
        return sum(self.flops_by_rank)

    @property
    def ideal_speedup(self) -> float:
        """What the FLOPs saved would give if time were FLOPs."""
        return self.flops_dense / self.flops_executed


@dataclass(frozen=True)
class StageForecast:
    """A stage of training. By pipeline stage: parameters, whole; bytes, of each of its ranks.

    work, usage: None where the recipe does not say how long a text is (`data.text_tokens`).
    """

    planned: PlannedStage
    micro_batches: int
    sparsity: Sparsity
    parameters: tuple[int, ...]
    bytes: tuple[RankBytes, ...]
    work: Work | None
    usage: Usage | None


@dataclass(frozen=True)
class RecipeForecast:
    """recipe: its groups resolved. proposed: the split for all stages of training together; None without `work`.

    fit: the cheapest setting that fits the memory of the hardware's GPUs; None where none does or is asked for.
    """

    recipe: Recipe
    data_parallel: int
    stages: tuple[StageForecast, ...]
    proposed: Split | None
    hardware: Hardware
    fit: Fit | None

    @property
    def own_split(self) -> tuple[int, ...]:
        """Layers of each virtual stage in order of depth, as the recipe has them."""
        stages = self.recipe.parallel.layers_of_stages(self.recipe.architecture.language.layers)
        return tuple(len(stage) for stage in stages)


def forecast(
    recipe: Recipe, data_parallel: int = 1, accepted: Collection[str] = (), hardware: Hardware | None = None
) -> RecipeForecast:
    """Plan a recipe for a number of data-parallel ranks.

    The plan is the one that training follows: groups left open are those of the run in `output_dir`, else of the
    layout. accepted: keys in which the run in `output_dir` may differ (`--accept`). Raises the errors that training
    would raise for the recipe, the layout, the run in `output_dir` or the data's records.
    """
    resumed = resolve(recipe, data_parallel, accepted)
    resolved, earlier = resumed.recipe, resumed.earlier
    machines = hardware or Hardware()
    stages = tuple(
        _stage_forecast(recipe, resolved, earlier, planned, data_parallel, machines)
        for planned in planned_stages(resumed)
    )
    worked = [(stage.planned, stage.work.simulation) for stage in stages if stage.work is not None]
    split = _split(recipe, earlier, worked) if worked else None
    used = [stage.usage.fit for stage in stages if stage.usage is not None]
    fit = None
    if machines.memory is not None and len(used) == len(stages):
        fit = cheapest_fit(resolved, data_parallel, machines, used)
    return RecipeForecast(resolved, data_parallel, stages, split, machines, fit)


def _stage_forecast(
    recipe: Recipe,
    resolved: Recipe,
    earlier: Recipe | None,
    planned: PlannedStage,
    data_parallel: int,
    hardware: Hardware,
) -> StageForecast:
    stage, ranks = planned.stage, range(recipe.parallel.pipeline)
    micro_batches = stage.batch.global_size // (stage.batch.micro * data_parallel)
    found = sparsity(resolved, planned)
    work = usage = None
    if stage.data.text_tokens is not None:
        simulation = StageSimulation(recipe, earlier, planned, micro_batches, found)
        work = _work(recipe, earlier, planned, found, simulation)
        usage = stage_usage(resolved, planned, data_parallel, found, hardware)
    return StageForecast(
        planned,
        micro_batches,
        found,
        parameters=tuple(sum(part_parameters(recipe, rank).values()) for rank in ranks),
        bytes=tuple(rank_bytes(recipe, stage, rank, data_parallel) for rank in ranks),
        work=work,
        usage=usage,
    )


def _work(
    recipe: Recipe, earlier: Recipe | None, planned: PlannedStage, found: Sparsity, simulation: StageSimulation
) -> Work:
    stage, layers = planned.stage, recipe.architecture.language.layers
    kept, total = found.visual_tokens, found.visual_tokens_dense
    samples = planned.steps * stage.batch.global_size
    own = simulation.predict()
    assert own is not None
    return Work(
        length=planned_length(recipe, stage, kept),
        length_dense=planned_length(recipe, stage, total),
        rounded=rounded_lengths(recipe, stage, kept),
        flops_dense=samples * sample_flops(recipe, stage, total, layers, stage.trains).total,
        flops_by_rank=tuple(samples * flops for flops in _sample_flops_by_rank(recipe, planned, found)),
        simulation=simulation,
        planned=own,
        predictions={selection: simulation.predict(selection) for selection in SELECTIONS},
        proposed=_split(recipe, earlier, [(planned, simulation)]),
    )


def _sample_flops_by_rank(recipe: Recipe, planned: PlannedStage, found: Sparsity) -> list[float]:
    """Executed FLOPs of a mean sample on each pipeline stage, over all its tensor-parallel ranks."""
    parallel = recipe.parallel
    flops = [0.0] * parallel.pipeline
    passes = [(found.visual_tokens, planned.stage.trains, 1.0, found.run_share, found.text_share)]
    if (teacher := found.teacher) is not None:
        passes.append((teacher.visual_tokens, (), teacher.share, teacher.run_share, teacher.text_share))
    for visual_tokens, trains, share, run_share, text_share in passes:
        stage_flops = (recipe, planned.stage, visual_tokens, 1, trains)
        one, for_text = sample_flops(*stage_flops), sample_flops(*stage_flops, layers_skipped_for_visual=1)
        for number, stage in enumerate(parallel.layers_of_stages(recipe.architecture.language.layers)):
            run, of_text = (sum(of_layers[layer] for layer in stage) for of_layers in (run_share, text_share))
            flops[number % parallel.pipeline] += one.layers * (run - of_text) + for_text.layers * of_text
        flops[0] += share * (one.tower + one.projector)
        flops[-1] += share * one.head
    return flops


def _split(recipe: Recipe, earlier: Recipe | None, stages: _Stages) -> Split:
    """The split that takes the least time over some stages of training, with what it gains."""
    loads = [StageLoad(planned.steps, simulation.schedule, simulation.costs) for planned, simulation in stages]
    split = best_split(recipe, earlier, loads)
    own, proposed, balanced = _time(stages), _time(stages, split=split), _time(stages, "balanced", split)
    assert own is not None and proposed is not None
    return Split(
        split,
        planned_speedup=own.planned / proposed.planned,
        dense_speedup=own.dense / proposed.dense,
        balanced_speedup=balanced.dense / balanced.planned if balanced is not None else None,
    )


class _Time(NamedTuple):
    planned: float
    dense: float


def _time(stages: _Stages, selection: Selection | None = None, split: tuple[int, ...] | None = None) -> _Time | None:
    """Simulated time of all steps of some stages of training, as planned and dense; None where one cannot be so."""
    planned_time = dense_time = 0.0
    for planned, simulation in stages:
        found = simulation.predict(selection, split)
        if found is None:
            return None
        planned_time += planned.steps * found.step_time
        dense_time += planned.steps * found.dense_step_time
    return _Time(planned_time, dense_time)
