"""Exact-match accuracy, and how far it can be trusted: pure functions."""

from collections.abc import Hashable, Sequence

import numpy as np

RESAMPLES = 1000


def normalized(answer: str) -> str:
    """An answer as it is compared: without surrounding space, trailing period and case."""
    return answer.strip().removesuffix(".").rstrip().casefold()


def bootstrap_interval(
    correct: Sequence[bool], pictures: Sequence[Hashable], seed: int = 0, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """The 95% interval of the accuracy, by resampling pictures with replacement.

    The questions of a picture stand or fall together, so that they are drawn together: question by question
    the interval would come out too narrow.
    """
    numbers: dict[Hashable, int] = {}
    groups = [numbers.setdefault(picture, len(numbers)) for picture in pictures]
    totals = np.bincount(groups)
    hits = np.bincount(groups, weights=np.asarray(correct, dtype=np.float64))
    generator = np.random.default_rng(seed)
    accuracies = np.empty(resamples)
    for number in range(resamples):
        drawn = generator.integers(len(totals), size=len(totals))
        accuracies[number] = hits[drawn].sum() / totals[drawn].sum()
    low, high = np.quantile(accuracies, [0.025, 0.975])
    return float(low), float(high)
