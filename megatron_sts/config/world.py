"""Whether a recipe's layout and batches fit the number of ranks that a run has."""

import math
from collections.abc import Iterator

from megatron_sts.config.checks import report
from megatron_sts.config.recipe import Recipe
from megatron_sts.config.stage_config import StageConfig
from megatron_sts.errors import ConfigError


def check_world(recipe: Recipe, world_size: int) -> int:
    """The data-parallel size of the layout on `world_size` ranks; ConfigError, with what fits, otherwise."""
    parallel = recipe.parallel
    model_ranks = parallel.tensor * parallel.pipeline * parallel.context
    if world_size < 1 or world_size % model_ranks:
        raise ConfigError(
            f"the world has {world_size} ranks, not a multiple of parallel.tensor {parallel.tensor} x "
            f"parallel.pipeline {parallel.pipeline} x parallel.context {parallel.context} = {model_ranks}; "
            f"{_fitting_worlds(recipe, world_size)}"
        )
    data = world_size // model_ranks
    problems = [problem for stage in recipe.stages for problem in _microbatch_problems(recipe, stage, data)]
    if problems:
        source = f"the layout on {world_size} ranks (data parallel {data})"
        raise report(source, [*problems, _fitting_worlds(recipe, world_size)])
    return data


def _microbatch_problems(recipe: Recipe, stage: StageConfig, data: int) -> Iterator[str]:
    """Why a stage's global batch cannot be cut into micro-batches of `data` data-parallel ranks."""
    field, batch, parallel = f"stages.{stage.name}.batch", stage.batch, recipe.parallel
    if batch.global_size % (batch.micro * data):
        yield (
            f"{field}.global is {batch.global_size}, not divisible by {field}.micro {batch.micro} x "
            f"data parallel {data} = {batch.micro * data}; change the batch or the number of ranks"
        )
        return
    microbatches = batch.global_size // (batch.micro * data)
    if parallel.virtual_pipeline > 1 and microbatches % parallel.pipeline:
        yield (
            f"{field}.global {batch.global_size} / ({field}.micro {batch.micro} x data parallel {data}) = "
            f"{microbatches} micro-batches, not a multiple of parallel.pipeline {parallel.pipeline}, as "
            "interleaving (parallel.virtual_pipeline above 1) needs; change the batch or the number of ranks"
        )


def _fitting_worlds(recipe: Recipe, world_size: int, shown: int = 6) -> str:
    """The world sizes nearest to the one asked for that every stage can run on, as a remedy to read."""
    parallel = recipe.parallel
    model_ranks = parallel.tensor * parallel.pipeline * parallel.context
    # A data-parallel size that fits divides every stage's number of micro-batches.
    most = math.gcd(*(stage.batch.global_size // stage.batch.micro for stage in recipe.stages))
    sizes = [
        data * model_ranks
        for data in _divisors(most)
        if not any(problem for stage in recipe.stages for problem in _microbatch_problems(recipe, stage, data))
    ]
    if not sizes:
        return "no world size fits: make batch.global / batch.micro a multiple of parallel.pipeline"
    nearest = sorted(sorted(sizes, key=lambda size: abs(size - world_size))[:shown])
    return f"world sizes that fit: {', '.join(map(str, nearest))}"


def _divisors(number: int) -> list[int]:
    """The divisors of a positive number, ascending."""
    small = [candidate for candidate in range(1, math.isqrt(number) + 1) if number % candidate == 0]
    return sorted({*small, *(number // divisor for divisor in small)})
