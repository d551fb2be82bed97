"""Balanced selection: in every step each group of layers skips the same number of them.

A pipeline's step takes as long as its slowest stage; where every virtual stage is made of groups, all stages get
faster together. Within a group the layers are drawn by systematic sampling along one line that goes on over the
whole stage of training: in step t the group's layers, in a fresh order, lie end to end from C(t) to C(t + 1), each
as long as its skip probability, and a layer is skipped where a whole number falls on it. C is the sum of the
expected counts so far plus one start drawn from [0, 1). All groups share C, hence the count; a layer no longer than
1 is met at most once; the cumulative count is within 1 of its expectation at every step; and over the start and the
orders a layer's probability is exactly its length.

In one run the start is one: where a step skips a whole number of layers of a group, it leans towards an equal share for
each of them. Where layers' lengths differ much, as by redundancy, every group therefore draws a fresh start for each
step, among those that give the same count.
"""

from collections.abc import Sequence

from megatron_sts.sts.streams import stream

# The line is measured in whole units, so that every group ends exactly where the others do.
_UNIT = 1 << 48


class BalancedSelection:
    """Draws the same number of layers from every group.

    groups: per group its layers that may be skipped. peaks: highest skip probability of every layer of the model.
    factors: of each step of the stage, the share of `peaks` that it has. most_skipped: of a group in any step.

    The expected count of a group is m = sum of all peaks / number of groups, at most `most_skipped`; in it, layer l
    has the probability q_l = m / n + p_l - mean of p over the group, n its layers: the tilt over depth acts inside a
    group. Contract: sts/groups.py has checked that every q_l is a probability.
    """

    def __init__(
        self,
        seed: int,
        stage: str,
        groups: Sequence[Sequence[int]],
        peaks: Sequence[float],
        factors: Sequence[float],
        most_skipped: int,
        fresh_starts: bool = False,
    ):
        """fresh_starts: see the top of this file."""
        self._seed, self._stage = seed, stage
        self._fresh_starts = fresh_starts
        self._groups = groups
        self._layers = len(peaks)
        self._peaks = balanced_peaks(groups, peaks)
        self._expected = sum(map(sum, self._peaks)) / len(groups)
        self._shares = [
            factor * min(1.0, most_skipped / (factor * self._expected)) if factor * self._expected else 0.0
            for factor in factors
        ]
        start = int(stream(seed, stage, "start").random() * _UNIT)
        self._edges = [start]
        for share in self._shares:
            self._edges.append(self._edges[-1] + round(share * self._expected * _UNIT))

    def probabilities(self, step: int) -> tuple[float, ...]:
        """The probability of each layer to be skipped in a step."""
        found = [0.0] * self._layers
        for layers, peaks in zip(self._groups, self._peaks, strict=True):
            for layer, peak in zip(layers, peaks, strict=True):
                found[layer] = self._shares[step] * peak
        return tuple(found)

    def skipped(self, step: int) -> frozenset[int]:
        """The layers that a step skips: the same number of each group."""
        start, end = self._edges[step], self._edges[step + 1]
        if start // _UNIT == end // _UNIT:
            return frozenset()
        skipped = set()
        for number, (layers, peaks) in enumerate(zip(self._groups, self._peaks, strict=True)):
            lengths = _whole_lengths([self._shares[step] * peak for peak in peaks], end - start)
            draws = stream(self._seed, self._stage, step, "order", number)
            order = sorted((draws.random(), *pair) for pair in zip(layers, lengths, strict=True))
            first = position = _fresh_start(start, end, draws.random()) if self._fresh_starts else start
            for _, layer, length in order:
                if position // _UNIT != (position + length) // _UNIT:
                    skipped.add(layer)
                position += length
            assert position - first == end - start
        return frozenset(skipped)


class RegroupedSelection:
    """Balanced selections in groups that a resume has changed, each up to the step before which its groups hold."""

    def __init__(self, ends: Sequence[int], selections: Sequence[BalancedSelection]):
        self._ends, self._selections = ends, selections

    def probabilities(self, step: int) -> tuple[float, ...]:
        """The probability of each layer to be skipped in a step."""
        return self._of(step).probabilities(step)

    def skipped(self, step: int) -> frozenset[int]:
        """The layers that a step skips: the same number of each group that holds then."""
        return self._of(step).skipped(step)

    def _of(self, step: int) -> BalancedSelection:
        return next(selection for end, selection in zip(self._ends, self._selections, strict=True) if step < end)


def balanced_peaks(groups: Sequence[Sequence[int]], peaks: Sequence[float]) -> list[list[float]]:
    """Highest probabilities by group under balanced selection: see BalancedSelection."""
    expected = sum(peaks[layer] for layers in groups for layer in layers) / len(groups)
    found: list[list[float]] = []
    for layers in groups:
        if not layers:
            # Legal where nothing is skipped.
            found.append([])
            continue
        mean = sum(peaks[layer] for layer in layers) / len(layers)
        found.append([expected / len(layers) + peaks[layer] - mean for layer in layers])
    return found


def _fresh_start(start: int, end: int, draw: float) -> int:
    """Another start, uniform among those from which as long a stretch meets as many whole numbers; draw: in [0, 1)."""
    count, (whole, rest) = end // _UNIT - start // _UNIT, divmod(end - start, _UNIT)
    low, high = (_UNIT - rest, _UNIT) if count > whole else (0, _UNIT - rest)
    return low + int(draw * (high - low))


def _whole_lengths(lengths: list[float], total: int) -> list[int]:
    """Lengths in whole units, each between 0 and 1, that sum to `total` units."""
    whole = [min(_UNIT, max(0, round(length * _UNIT))) for length in lengths]
    missing = total - sum(whole)
    for number, length in enumerate(whole):
        # Rounding leaves a few units over; they go to the first that have room.
        changed = min(_UNIT, max(0, length + missing))
        missing -= changed - length
        whole[number] = changed
    assert missing == 0
    return whole
