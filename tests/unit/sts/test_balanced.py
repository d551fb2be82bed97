"""Shows that every group skips the same number of layers in every step, and the total keeps to its expectation."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_sts.sts.balanced import BalancedSelection, balanced_peaks


def selection(groups, peaks, factors, most_skipped=None, seed=7) -> BalancedSelection:
    most = most_skipped if most_skipped is not None else min(map(len, groups))
    return BalancedSelection(seed, "tune", groups, peaks, factors, most)


def tilted(layers: int, alpha: float, epsilon: float) -> list[float]:
    return [alpha * (1 + epsilon * (2 * layer - (layers - 1)) / (layers - 1)) for layer in range(layers)]


def test_tilt_acts_inside_a_group_and_every_group_has_the_same_sum():
    # Peaks 0.1 .. 0.4, mean 0.25; the groups' means are 0.15 and 0.35.
    found = balanced_peaks([[0, 1], [2, 3]], [0.1, 0.2, 0.3, 0.4])
    assert found[0] == pytest.approx([0.2, 0.3]) and found[1] == pytest.approx([0.2, 0.3])


def test_groups_of_unequal_size_share_the_count():
    # 4 x 0.3 over two groups: each skips 0.6 layers, of 1 and of 3.
    found = balanced_peaks([[0], [1, 2, 3]], [0.3] * 4)
    assert found[0] == pytest.approx([0.6]) and found[1] == pytest.approx([0.2] * 3)


@settings(max_examples=40, deadline=None)
@given(
    size=st.integers(1, 10),
    count=st.integers(1, 8),
    epsilon=st.floats(-1, 1),
    share=st.floats(0, 1),
    steps=st.integers(1, 60),
    seed=st.integers(0, 1000),
)
def test_counts_are_equal_and_cumulative_counts_within_one_of_the_expectation(size, count, epsilon, share, steps, seed):
    layers = size * count
    peaks = tilted(layers, share / (1 + abs(epsilon)), epsilon) if layers > 1 else [share]
    groups = [list(range(start, start + size)) for start in range(0, layers, size)]
    factors = [(1 - step / steps) ** 2 for step in range(steps)]
    made = selection(groups, peaks, factors, seed=seed)
    done, expected = 0, 0.0
    for step in range(steps):
        skipped = made.skipped(step)
        counts = {len(skipped.intersection(group)) for group in groups}
        assert len(counts) == 1
        done += counts.pop()
        expected += factors[step] * sum(peaks) / count
        assert abs(done - expected) < 1 + 1e-9
        assert all(0 <= probability <= 1 for probability in made.probabilities(step))


def test_layers_of_certain_skip_are_always_skipped_and_those_of_none_never():
    made = selection([[0, 1, 2], [3, 4, 5]], [1.0, 0.5, 0.0, 1.0, 0.5, 0.0], [1.0] * 200)
    drawn = [made.skipped(step) for step in range(200)]
    assert all({0, 3} <= skipped and not {2, 5} & skipped for skipped in drawn)
    assert {len(skipped) for skipped in drawn} == {2, 4}


def test_a_limit_on_the_count_scales_every_probability():
    # 0.75 of 4 layers are 3 a group; at most 2 leave two thirds of each probability.
    made = selection([[0, 1, 2, 3]], [0.75] * 4, [1.0, 0.5], most_skipped=2)
    assert made.probabilities(0) == pytest.approx((0.5,) * 4)
    assert len(made.skipped(0)) == 2
    # Half-way down 1.5 layers are expected, and nothing is scaled.
    assert made.probabilities(1) == pytest.approx((0.375,) * 4)


def test_which_layers_of_a_group_are_skipped_together_varies():
    made = selection([[0, 1, 2, 3]], [0.5] * 4, [1.0] * 600)
    pairs = [frozenset(made.skipped(step)) for step in range(600)]
    # Six pairs, each expected 100 times.
    assert len(set(pairs)) == 6
    assert all(abs(pairs.count(pair) - 100) < 5 * math.sqrt(100) for pair in set(pairs))


def test_the_draw_is_the_one_of_earlier_releases():
    made = selection([[0, 1, 2, 3], [4, 5, 6, 7]], tilted(8, 0.4, 0.5), [1.0] * 6)
    assert [sorted(made.skipped(step)) for step in range(6)] == [
        [0, 1, 4, 6],
        [1, 5],
        [0, 3, 4, 7],
        [1, 3, 5, 6],
        [3, 6],
        [1, 3, 4, 7],
    ]
