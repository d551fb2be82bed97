"""Shows where each rank stands in a layout: tensor-parallel neighbours first, then data, then pipeline."""

from dataclasses import astuple

from megatron_sts.config import ParallelConfig
from megatron_sts.parallel.groups import Place, start_groups
from tests.ranks import run_ranks


def _places(*layouts: ParallelConfig) -> list[Place]:
    return [start_groups(parallel, seed=1) for parallel in layouts]


def test_places_of_four_ranks_also_when_laid_out_anew():
    places = run_ranks(4, _places, ParallelConfig(tensor=2, pipeline=2), ParallelConfig(tensor=2))
    # rank, world size, then rank and size of tensor, pipeline and data parallelism
    assert [astuple(first) for first, _ in places] == [
        (0, 4, 0, 2, 0, 2, 0, 1),
        (1, 4, 1, 2, 0, 2, 0, 1),
        (2, 4, 0, 2, 1, 2, 0, 1),
        (3, 4, 1, 2, 1, 2, 0, 1),
    ]
    assert [(second.tensor_rank, second.data_rank) for _, second in places] == [(0, 0), (1, 0), (0, 1), (1, 1)]
    assert [(first.first_stage, first.last_stage) for first, _ in places] == [(True, False)] * 2 + [(False, True)] * 2
    assert all(second.first_stage and second.last_stage for _, second in places)
