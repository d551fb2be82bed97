"""Shows that a limit on the skipped layers gives the conditional distribution, worked out by enumeration."""

from itertools import product

import pytest

from megatron_sts.sts.independent import IndependentSelection

PROBABILITIES = (0.2, 0.9, 0.5, 0.7)


def enumerated(limit: int) -> list[float]:
    """Marginals of independent draws given that at most `limit` are skipped, by listing every outcome."""
    within, hits = 0.0, [0.0] * len(PROBABILITIES)
    for outcome in product((0, 1), repeat=len(PROBABILITIES)):
        if sum(outcome) > limit:
            continue
        mass = 1.0
        for drawn, probability in zip(outcome, PROBABILITIES, strict=True):
            mass *= probability if drawn else 1 - probability
        within += mass
        hits = [hit + mass * drawn for hit, drawn in zip(hits, outcome, strict=True)]
    return [hit / within for hit in hits]


@pytest.mark.parametrize("limit", [0, 1, 2, 3])
def test_marginals_under_a_limit_are_the_conditional_ones(limit):
    made = IndependentSelection(1, "tune", lambda step: PROBABILITIES, limit)
    assert made.probabilities(0) == pytest.approx(enumerated(limit))


def test_draws_under_a_limit_keep_to_it_and_follow_the_conditional_joint_distribution():
    made = IndependentSelection(1, "tune", lambda step: PROBABILITIES, 2)
    drawn = [made.skipped(step) for step in range(4000)]
    assert max(map(len, drawn)) == 2
    # P(1 and 3 alone) = 0.8 x 0.9 x 0.5 x 0.7 = 0.252; P(at most 2) = 1 - 0.384 - 0.063 (three, four skipped).
    three = 0.2 * 0.9 * 0.5 * 0.3 + 0.2 * 0.9 * 0.5 * 0.7 + 0.2 * 0.1 * 0.5 * 0.7 + 0.8 * 0.9 * 0.5 * 0.7
    expected = 0.252 / (1 - three - 0.2 * 0.9 * 0.5 * 0.7)
    assert drawn.count(frozenset({1, 3})) / 4000 == pytest.approx(expected, abs=5 * 0.008)


def test_without_a_limit_probabilities_are_as_given():
    made = IndependentSelection(1, "tune", lambda step: PROBABILITIES, 4)
    assert made.probabilities(3) == PROBABILITIES
