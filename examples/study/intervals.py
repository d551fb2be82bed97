"""Means over seeds, and differences to dense runs of the same seeds with 95% intervals."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.stats import t

CONFIDENCE = 0.95
# With one degree of freedom an interval is 13 standard deviations wide, and says nothing.
LEAST_FREEDOM = 2


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval; half is None where too few were run with several seeds."""

    mean: float
    half: float | None
    runs: int


def paired_differences(arms: Mapping[str, Mapping[int, float]], control: str) -> dict[str, Interval]:
    """Of each arm the mean of arm - control over the seeds that both have, and Student's 95% interval.

    arms: a figure by arm and seed. Runs of one seed see the same samples in the same order, so that they are compared
    pairwise. The scatter of a difference is taken to be the same for all arms and is estimated from all of those with
    several seeds together: three runs alone say little of it, one run nothing. Arms without a seed in common with the
    control are left out.
    """
    differences: dict[str, list[float]] = {}
    for name, values in arms.items():
        common = sorted(values.keys() & arms.get(control, {}).keys())
        if name != control and common:
            differences[name] = [values[seed] - arms[control][seed] for seed in common]
    scatter, freedom = pooled_scatter(list(differences.values()))
    found = {}
    for name, values in differences.items():
        half = None
        if scatter is not None:
            half = float(t.ppf((1 + CONFIDENCE) / 2, freedom)) * scatter / math.sqrt(len(values))
        found[name] = Interval(statistics.mean(values), half, len(values))
    return found


def pooled_scatter(groups: Sequence[Sequence[float]]) -> tuple[float | None, int]:
    """Standard deviation within groups, from all of them together, and its degrees of freedom; None: too few."""
    freedom = sum(len(group) - 1 for group in groups)
    if freedom < LEAST_FREEDOM:
        return None, freedom
    squares = sum(statistics.variance(group) * (len(group) - 1) for group in groups if len(group) > 1)
    return math.sqrt(squares / freedom), freedom
