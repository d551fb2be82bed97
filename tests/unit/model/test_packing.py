"""Shows what attention is told of a packed row."""

import pytest

from megatron_sts.model.packing import packed_parameters
from megatron_sts.parallel.device import prepare_device
from tests.ranks import run_ranks


def _told(segments: tuple[int, ...], context_size: int) -> dict[str, object]:
    prepare_device()
    row = packed_parameters(segments, context_size)
    return {name: value.tolist() if hasattr(value, "tolist") else value for name, value in vars(row).items()}


def test_bounds_are_those_of_the_whole_row():
    (row,) = run_ranks(1, _told, (8, 4, 12), 1)
    assert row["qkv_format"] == "thd"
    assert row["cu_seqlens_q"] == row["cu_seqlens_kv"] == [0, 8, 12, 24]
    assert row["max_seqlen_q"] == row["max_seqlen_kv"] == 12
    assert row["cu_seqlens_q_padded"] is None


def test_under_context_parallelism_the_padded_bounds_are_given_too():
    # Transformer Engine divides them by the number of ranks, and has no other source for them.
    (row,) = run_ranks(1, _told, (8, 4, 12), 2)
    assert row["cu_seqlens_q_padded"] == row["cu_seqlens_kv_padded"] == row["cu_seqlens_q"] == [0, 8, 12, 24]


def test_a_sample_that_does_not_split_evenly_is_our_mistake():
    with pytest.raises(AssertionError):
        packed_parameters((8, 6), 2)
