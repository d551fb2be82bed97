"""The sequence dimension: the padded length, and the part of it that each rank holds."""

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise

from megatron_sts.config import FP8_MULTIPLE, Recipe

Ranges = tuple[tuple[int, int], ...]
"""Positions [start, end) of a sequence, ascending."""
_ROUNDING = {"fp32": 1, "bf16": 64, "fp8": 128}
"""By precision: cuDNN's fused attention, which fp32 does not use, compiles a plan for each new shape of padded rows."""


def length_multiple(recipe: Recipe) -> int:
    """What a padded sequence length must be a multiple of.

    Sequence parallelism splits the sequence over the tensor-parallel ranks, context parallelism into two chunks a
    rank; FP8 products want whole blocks of rows on every rank. Contract: data, model and plan all take the multiple
    from here.
    """
    parallel = recipe.parallel
    ranks = parallel.context * (parallel.tensor if parallel.sequence_parallel else 1)
    rows = FP8_MULTIPLE[recipe.fp8_recipe] if recipe.precision == "fp8" else 1
    return math.lcm(ranks * rows, 2 * parallel.context if parallel.context > 1 else 1)


def length_rounding(recipe: Recipe) -> int:
    """What lengths of padded rows are rounded up to a multiple of, by `length_rounding` or else by the precision."""
    return recipe.length_rounding or _ROUNDING[recipe.precision]


def padded_length(length: int, recipe: Recipe) -> int:
    """The sequence length of padded rows of at most `length` tokens: rounded up, then the least legal one."""
    return legal_length(round_up(length, length_rounding(recipe)), recipe)


def legal_length(length: int, recipe: Recipe) -> int:
    """The least legal sequence length that holds `length` tokens; attention over packed samples needs no rounding."""
    return round_up(length, length_multiple(recipe))


def round_up(length: int, multiple: int) -> int:
    """The least multiple that holds `length`."""
    return -(-length // multiple) * multiple


def sample_multiple(context_size: int) -> int:
    """What the length of a sample in a packed row must be a multiple of: context parallelism cuts each by itself.

    Contract: the data pads samples to it, and packing.py of the model tells attention of the padded ones.
    """
    return 2 * context_size if context_size > 1 else 1


def own_ranges(
    segments: Sequence[int], tensor_rank: int = 0, tensor_size: int = 1, context_rank: int = 0, context_size: int = 1
) -> Ranges:
    """The positions [start, end) of a row that a rank holds, in the order in which it holds them, which is ascending.

    segments: the lengths of what lies end to end in the row, its own alone where nothing is packed.
    Context parallelism deals out 2c chunks of each segment, two to a rank, the early with the late one (zigzag), so
    that causal attention costs all ranks the same; under sequence parallelism the `tensor_size` ranks that share a
    context rank take contiguous parts of what it holds, elsewhere tensor_size is 1.
    """
    length = sum(segments)
    parts = length // (context_size * tensor_size)
    if context_size == 1:
        held = [(0, length)]
    else:
        bounds = pairwise((0, *accumulate(segments)))
        held = [part for start, end in bounds for part in _zigzag(start, end, context_rank, context_size)]
    assert length % (context_size * tensor_size) == 0
    first, last = tensor_rank * parts, (tensor_rank + 1) * parts
    own, passed = [], 0
    for start, end in held:
        low, high = max(first - passed, 0), min(last - passed, end - start)
        if low < high:
            own.append((start + low, start + high))
        passed += end - start
    return tuple(own)


def _zigzag(start: int, end: int, rank: int, size: int) -> list[tuple[int, int]]:
    assert (end - start) % (2 * size) == 0
    part = (end - start) // (2 * size)
    return [(start + chunk * part, start + (chunk + 1) * part) for chunk in (rank, 2 * size - 1 - rank)]
