"""The sequence dimension: the padded length, and each tensor-parallel rank's chunk of it."""

from megatron_sts.config import ParallelConfig


def length_multiple(parallel: ParallelConfig) -> int:
    """What a padded sequence length must be a multiple of.

    Sequence parallelism splits the sequence over the tensor-parallel ranks. Contract: data, model and plan all
    take the multiple from here.
    """
    return parallel.tensor if parallel.sequence_parallel else 1


def padded_length(length: int, parallel: ParallelConfig) -> int:
    """The least legal sequence length that holds `length` tokens."""
    multiple = length_multiple(parallel)
    return -(-length // multiple) * multiple


def own_chunk(length: int, rank: int, ranks: int) -> tuple[int, int]:
    """[start, end) of the positions that a tensor-parallel rank holds under sequence parallelism."""
    assert length % ranks == 0
    chunk = length // ranks
    return rank * chunk, (rank + 1) * chunk
