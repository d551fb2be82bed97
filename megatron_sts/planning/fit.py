"""The cheapest setting of a recipe that fits the memory of a GPU, on as many ranks.

Tried are tensor parallelism within a node, with sequence parallelism and the data-parallel ranks that it leaves; what
is recomputed; and for every stage each size of a micro-batch. The optimiser's state is split over the data-parallel
ranks. Pipeline, context parallelism and the global batch stay. A setting fits where the weights, gradients, optimiser
and activations of every rank, for the longest samples, leave RESERVE free; of those that fit the one whose steps take
least time (step_time.py) is taken; of micro-batches within 1% the largest, which gives each launch most work.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from megatron_sts.config import Recipe, StageConfig
from megatron_sts.config.checks import recipe_problems
from megatron_sts.config.world import check_world
from megatron_sts.errors import ConfigError
from megatron_sts.planning.activations import largest_activations
from megatron_sts.planning.hardware import Hardware
from megatron_sts.planning.memory import rank_bytes
from megatron_sts.planning.step_time import LayersRun, step_seconds
from megatron_sts.sts import StepPlan

RESERVE = 6 * 2**30
"""Bytes kept free: the CUDA context, buffers of NCCL and cuBLAS, fragments. Assumed."""
LONGEST_TEXT = 5
"""Text of the longest samples over the mean, as far as `max_tokens` lets it. Assumed; lower `max_tokens` to be sure."""
_RECOMPUTE: tuple[tuple[str, ...] | str, ...] = ("none", ("layernorm",), ("mlp",), ("layernorm", "mlp"), "full")


@dataclass(frozen=True)
class FitStage:
    """What the search needs of a stage of training: its steps, the plan that keeps most, and the mean of the layers."""

    name: str
    steps: int
    fullest: StepPlan
    layers: LayersRun


@dataclass(frozen=True)
class FittedStage:
    """A micro-batch size for a stage, the bytes of its fullest rank (the reserve not among them), seconds of a step."""

    name: str
    micro: int
    bytes: float
    seconds: float


@dataclass(frozen=True)
class Fit:
    """A setting that fits, and what it does in each stage."""

    recipe: Recipe
    data_parallel: int
    stages: tuple[FittedStage, ...]

    def seconds(self, stages: Sequence[FitStage]) -> float:
        """Of all steps."""
        return sum(stage.seconds * one.steps for stage, one in zip(self.stages, stages, strict=True))


def longest_samples(stage: StageConfig, visual_tokens: int) -> StageConfig:
    """The stage with its longest samples for mean ones."""
    text = stage.data.text_tokens
    assert text is not None
    longest = max(text, min(LONGEST_TEXT * text, stage.data.max_tokens - visual_tokens))
    return stage.model_copy(update={"data": stage.data.model_copy(update={"text_tokens": longest})})


def fullest_rank(recipe: Recipe, stage: StageConfig, data_parallel: int, plan: StepPlan) -> float:
    """Bytes of the rank that holds most, while it trains the longest samples."""
    longest = longest_samples(stage, plan.visual_tokens)
    micro_batches = stage.batch.global_size // (stage.batch.micro * data_parallel)
    return max(
        rank_bytes(recipe, stage, rank, data_parallel).total
        + largest_activations(recipe, longest, rank, micro_batches, [plan]).total
        for rank in range(recipe.parallel.pipeline)
    )


def cheapest_fit(recipe: Recipe, data_parallel: int, hardware: Hardware, stages: Sequence[FitStage]) -> Fit | None:
    """The cheapest setting that fits, None where none does."""
    found = (_fitted(*setting, hardware, stages) for setting in _settings(recipe, data_parallel, hardware))
    return min((fit for fit in found if fit is not None), key=lambda fit: fit.seconds(stages), default=None)


def _settings(recipe: Recipe, data_parallel: int, hardware: Hardware) -> Iterator[tuple[Recipe, int]]:
    parallel = recipe.parallel
    ranks = parallel.tensor * data_parallel
    for tensor in (size for size in (1, 2, 4, 8) if size <= hardware.gpus_per_node and ranks % size == 0):
        layout = parallel.model_copy(update={"tensor": tensor, "sequence_parallel": tensor > 1})
        split = recipe.optimizer.kind == "adam" and ranks // tensor * parallel.context > 1
        optimizer = recipe.optimizer.model_copy(update={"distributed": split or recipe.optimizer.distributed})
        for recompute in _RECOMPUTE:
            changes = {"parallel": layout, "optimizer": optimizer, "recompute": recompute}
            yield recipe.model_copy(update=changes), ranks // tensor


def _fitted(recipe: Recipe, data_parallel: int, hardware: Hardware, stages: Sequence[FitStage]) -> Fit | None:
    assert hardware.memory is not None
    found = []
    for one in stages:
        sizes = []
        for tried in _micro_batches(recipe, recipe.stage(one.name), data_parallel):
            stage = tried.stage(one.name)
            held = fullest_rank(tried, stage, data_parallel, one.fullest)
            if held + RESERVE > hardware.memory:
                break
            seconds = step_seconds(tried, stage, data_parallel, hardware, one.layers).total
            sizes.append(FittedStage(one.name, stage.batch.micro, held, seconds))
        if not sizes:
            return None
        least = min(size.seconds for size in sizes)
        found.append([size for size in sizes if size.seconds <= 1.01 * least][-1])
        recipe = _with_micro(recipe, recipe.stage(one.name), found[-1].micro)
    return Fit(recipe, data_parallel, tuple(found))


def _micro_batches(recipe: Recipe, stage: StageConfig, data_parallel: int) -> Iterator[Recipe]:
    """The recipe with each size of a micro-batch that the layout takes, smallest first."""
    for micro in range(1, stage.batch.global_size // data_parallel + 1):
        if stage.batch.global_size % (micro * data_parallel):
            continue
        tried = _with_micro(recipe, stage, micro)
        alone = tried.model_copy(update={"stages": (tried.stage(stage.name),)})
        try:
            check_world(
                alone, data_parallel * recipe.parallel.tensor * recipe.parallel.pipeline * recipe.parallel.context
            )
        except ConfigError:
            continue
        if not recipe_problems(alone):
            yield tried


def _with_micro(recipe: Recipe, stage: StageConfig, micro: int) -> Recipe:
    batch = stage.batch.model_copy(update={"micro": micro})
    return recipe.with_stage(stage.model_copy(update={"batch": batch}))
