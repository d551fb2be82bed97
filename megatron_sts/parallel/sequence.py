"""The sequence dimension: the padded length, and the part of it that each rank holds."""

import math

from megatron_sts.config import FP8_MULTIPLE, Recipe


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


def padded_length(length: int, recipe: Recipe) -> int:
    """The least legal sequence length that holds `length` tokens."""
    multiple = length_multiple(recipe)
    return -(-length // multiple) * multiple


def own_ranges(
    length: int, tensor_rank: int = 0, tensor_size: int = 1, context_rank: int = 0, context_size: int = 1
) -> tuple[tuple[int, int], ...]:
    """The positions [start, end) of a sequence that a rank holds, in the order in which it holds them.

    Context parallelism deals out 2c chunks, two to a rank, the early with the late one (zigzag), so that causal
    attention costs all ranks the same; under sequence parallelism the `tensor_size` ranks that share a context rank
    take contiguous parts of what it holds, elsewhere tensor_size is 1.
    """
    half, parts = length // (2 * context_size), length // (context_size * tensor_size)
    if context_size == 1:
        held = [(0, length)]
    else:
        assert length % (2 * context_size) == 0
        chunks = (context_rank, 2 * context_size - 1 - context_rank)
        held = [(chunk * half, (chunk + 1) * half) for chunk in chunks]
    assert length % (context_size * tensor_size) == 0
    first, last = tensor_rank * parts, (tensor_rank + 1) * parts
    own, passed = [], 0
    for start, end in held:
        low, high = max(first - passed, 0), min(last - passed, end - start)
        if low < high:
            own.append((start + low, start + high))
        passed += end - start
    return tuple(own)
