"""Independent selection: one Bernoulli draw per layer and step, as in the paper (arXiv 2509.18150)."""

from collections.abc import Callable

from megatron_sts.sts.streams import stream

Probabilities = Callable[[int], tuple[float, ...]]
"""Skip probability of each layer in a 0-based step."""


class IndependentSelection:
    """Draws every layer by itself; with a limit on how many may be skipped, given that the limit is kept.

    The limit is kept by drawing from the conditional distribution: layer by layer, with the probability that it has
    given what was drawn before it and that the total will not exceed the limit.
    """

    def __init__(self, seed: int, stage: str, probabilities: Probabilities, most_skipped: int):
        self._seed, self._stage = seed, stage
        self._given = probabilities
        self._most_skipped = most_skipped

    def probabilities(self, step: int) -> tuple[float, ...]:
        """The probability of each layer to be skipped in a step, the limit taken into account."""
        given = self._given(step)
        if self._most_skipped >= len(given):
            return given
        before = _count_distributions(given)
        after = _count_distributions(given[::-1])[::-1]
        within = sum(before[-1][: self._most_skipped + 1])
        return tuple(
            probability * _at_most(before[layer], after[layer + 1], self._most_skipped - 1) / within
            for layer, probability in enumerate(given)
        )

    def skipped(self, step: int) -> frozenset[int]:
        """The layers that a step skips."""
        draws = stream(self._seed, self._stage, step, "skip")
        given = self._given(step)
        limited = self._most_skipped < len(given)
        # By layer: how many of the layers from it on are skipped, as a distribution.
        ahead = _count_distributions(given[::-1])[::-1] if limited else []
        skipped: set[int] = set()
        for layer, probability in enumerate(given):
            if limited:
                left = self._most_skipped - len(skipped)
                probability *= sum(ahead[layer + 1][:left]) / sum(ahead[layer][: left + 1])
            if draws.random() < probability:
                skipped.add(layer)
        return frozenset(skipped)


def _count_distributions(probabilities: tuple[float, ...]) -> list[list[float]]:
    """For each n: the distribution of how many of the first n layers are skipped."""
    found = [[1.0]]
    for probability in probabilities:
        last = found[-1]
        grown = [0.0] * (len(last) + 1)
        for count, mass in enumerate(last):
            grown[count] += mass * (1.0 - probability)
            grown[count + 1] += mass * probability
        found.append(grown)
    return found


def _at_most(one: list[float], other: list[float], most: int) -> float:
    """Probability that two independent counts sum to at most `most`."""
    return sum(mass * sum(other[: most - count + 1]) for count, mass in enumerate(one) if count <= most)
