"""Shows where each rank stands in a layout: tensor-parallel neighbours first, then data, then pipeline.

And that a rank waits for a lost one only as long as the recipe says.
"""

import re
import time
from dataclasses import astuple

import pytest
import torch
import torch.distributed as dist

from megatron_sts.config import ParallelConfig
from megatron_sts.parallel.groups import Place, group_collection, start_groups
from tests.ranks import RankFailed, run_ranks


def _places(*layouts: ParallelConfig) -> list[Place]:
    return [start_groups(parallel, seed=1) for parallel in layouts]


def test_places_of_four_ranks_also_when_laid_out_anew():
    places = run_ranks(4, _places, ParallelConfig(tensor=2, pipeline=2), ParallelConfig(tensor=2))
    # rank, world size, then rank and size of tensor, pipeline, context and data parallelism
    assert [astuple(first) for first, _ in places] == [
        (0, 4, 0, 2, 0, 2, 0, 1, 0, 1),
        (1, 4, 1, 2, 0, 2, 0, 1, 0, 1),
        (2, 4, 0, 2, 1, 2, 0, 1, 0, 1),
        (3, 4, 1, 2, 1, 2, 0, 1, 0, 1),
    ]
    assert [(second.tensor_rank, second.data_rank) for _, second in places] == [(0, 0), (1, 0), (0, 1), (1, 1)]
    assert [(first.first_stage, first.last_stage) for first, _ in places] == [(True, False)] * 2 + [(False, True)] * 2
    assert all(second.first_stage and second.last_stage for _, second in places)


def test_context_parallel_ranks_hold_the_same_data():
    places = [place for (place,) in run_ranks(4, _places, ParallelConfig(context=2))]
    found = [(place.context_rank, place.context_size, place.data_rank, place.data_size) for place in places]
    assert found == [(0, 2, 0, 2), (1, 2, 0, 2), (0, 2, 1, 2), (1, 2, 1, 2)]


def _image_shares(parallel: ParallelConfig) -> tuple[list[int], int, int]:
    place, groups = start_groups(parallel, seed=1), group_collection()
    return list(place.own_images(6)), groups.tp_cp.rank(), groups.tp_cp.size()


def test_tensor_and_context_parallel_ranks_share_the_images_in_the_order_of_their_group():
    # Tensor-parallel neighbours first, as megatron-core's group has them.
    found = run_ranks(4, _image_shares, ParallelConfig(tensor=2, context=2))
    assert found == [([0], 0, 4), ([1, 2], 1, 4), ([3], 2, 4), ([4, 5], 3, 4)]
    found = run_ranks(4, _image_shares, ParallelConfig(context=2))
    assert found == [([0, 1, 2], 0, 2), ([3, 4, 5], 1, 2)] * 2


def _wait_for_a_lost_rank(parallel: ParallelConfig) -> None:
    """Rank 0 sums over its tensor-parallel group, to which rank 1 never comes; it says how long it waited."""
    if start_groups(parallel, seed=1).rank == 1:
        time.sleep(30)
    began = time.monotonic()
    try:
        dist.all_reduce(torch.ones(1), group=group_collection().tp)
    except RuntimeError:
        raise TimeoutError(f"after {time.monotonic() - began:.2f} s") from None


def test_a_rank_that_does_not_come_ends_the_others_within_the_timeout():
    with pytest.raises(RankFailed, match=r"rank 0 raised") as failed:
        run_ranks(2, _wait_for_a_lost_rank, ParallelConfig(tensor=2, timeout_minutes=0.05))
    (waited,) = re.findall(r"TimeoutError: after ([\d.]+) s", str(failed.value))
    assert 2.5 < float(waited) < 20
