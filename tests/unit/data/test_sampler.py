"""Shows that the order of samples depends on seed and step alone and that every epoch is complete."""

import numpy as np
import pytest

from megatron_sts.data import LengthGroups, StepSampler, rank_slice
from megatron_sts.errors import ConfigError, DataError


def line(sampler: StepSampler, steps: int) -> list[int]:
    return [sample for step in range(steps) for sample in sampler.samples_of_step(step)]


def test_every_epoch_holds_every_sample_once_also_where_steps_cross_its_end() -> None:
    samples = line(StepSampler(count=10, global_batch=4, seed=3), steps=15)
    epochs = [samples[start : start + 10] for start in range(0, 60, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6


def test_a_step_larger_than_the_data_spans_epochs() -> None:
    samples = StepSampler(count=3, global_batch=8, seed=0).samples_of_step(1)
    assert len(samples) == 8
    # Positions 8 to 15: the end of epoch 2, epochs 3 and 4 whole, the first of epoch 5.
    assert sorted(samples[1:4]) == sorted(samples[4:7]) == [0, 1, 2]


def test_the_order_does_not_depend_on_which_steps_were_asked_before() -> None:
    forward = StepSampler(count=7, global_batch=3, seed=5)
    expected = [forward.samples_of_step(step) for step in range(12)]
    backward = StepSampler(count=7, global_batch=3, seed=5)
    assert [backward.samples_of_step(step) for step in reversed(range(12))] == expected[::-1]


def test_seeds_give_different_orders() -> None:
    orders = {tuple(StepSampler(20, 20, seed).samples_of_step(0)) for seed in range(5)}
    assert len(orders) == 5


def test_the_order_is_the_one_of_earlier_releases() -> None:
    sampler = StepSampler(count=8, global_batch=8, seed=1234)
    assert [sampler.samples_of_step(step) for step in range(2)] == [
        [5, 6, 3, 7, 4, 1, 2, 0],
        [2, 0, 7, 6, 1, 4, 5, 3],
    ]


def _groups(count: int) -> LengthGroups:
    lengths = np.random.default_rng(0).integers(10, 500, count)
    return LengthGroups(lengths, np.arange(count) % 7 != 0)


@pytest.mark.parametrize(("count", "global_batch"), [(1003, 8), (96, 8), (10, 4), (3, 8), (65, 64)])
def test_grouped_epochs_hold_every_sample_once(count: int, global_batch: int) -> None:
    sampler = StepSampler(count, global_batch, seed=3, groups=_groups(count))
    steps = 3 * count // global_batch + 1
    samples = line(sampler, steps)
    epochs = [samples[start : start + count] for start in range(0, 3 * count, count)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    again = StepSampler(count, global_batch, seed=3, groups=_groups(count))
    assert again.samples_of_step(steps - 1) == samples[-global_batch:]


def test_grouped_steps_are_of_one_kind_and_of_like_length_in_every_epoch() -> None:
    groups = _groups(1003)
    plain, grouped = StepSampler(1003, 8, seed=3), StepSampler(1003, 8, seed=3, groups=groups)

    def padding(sampler: StepSampler) -> float:
        steps = [groups.lengths[sampler.samples_of_step(step)] for step in range(376)]
        return 1.0 - sum(step.sum() for step in steps) / sum(8 * step.max() for step in steps)

    assert len({tuple(grouped.samples_of_step(step)) for step in range(376)}) == 376
    kinds = [set(groups.has_images[grouped.samples_of_step(step)]) for step in range(376)]
    # A step or two at each end of an epoch take what is left over.
    assert sum(len(kind) == 2 for kind in kinds) <= 8
    assert padding(plain) > 0.4 and padding(grouped) < 0.1


def test_without_samples_there_is_nothing_to_train_on() -> None:
    with pytest.raises(DataError, match=r"data\.train: holds no sample"):
        StepSampler(count=0, global_batch=1, seed=0)


def test_ranks_share_the_micro_batches_of_a_step_whatever_their_number() -> None:
    indices = StepSampler(count=50, global_batch=16, seed=2).samples_of_step(1)
    for data_size in (1, 2, 4):
        ranks = [rank_slice(indices, rank, data_size, micro=2) for rank in range(data_size)]
        # Micro-batches in the order of the step: the first of every rank, then the second of every rank ...
        dealt = [micro_batch for together in zip(*ranks, strict=True) for micro_batch in together]
        assert dealt == [indices[start : start + 2] for start in range(0, 16, 2)]


def test_micro_batches_by_hand() -> None:
    assert rank_slice([0, 1, 2, 3, 4, 5, 6, 7], data_rank=1, data_size=2, micro=2) == [[2, 3], [6, 7]]


def test_a_batch_that_does_not_come_out_even_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"batch\.global: found 12.*batch\.micro 2 x 4.*multiple of 8"):
        rank_slice(list(range(12)), data_rank=0, data_size=4, micro=2)
