"""Skip probabilities from what each layer is measured to be worth: `skip.by: redundancy`.

A layer's rise r_l is how much the loss rises, in nats a supervised token, where that layer alone is left out. Layers
that rise above `protect_above` are never skipped; the others share the rate by

    p_l = min(1, c w_l),    w_l = exp(-max(r_l, 0) / T),  T = 0.1 nats,    c such that the mean over all layers is alpha

Compared on SmolLM2-135M (docs/redundancy.md) with equal shares, w = 1 / r and T = 0.3 nats: it costs least in whole
plans. A rise below 0 is taken as 0: that a layer harms says more of the data than of the layer.
"""

import math
from collections.abc import Iterator, Sequence

from megatron_sts.config import SkipConfig
from megatron_sts.errors import ConfigError

# T, in nats.
_TEMPERATURE = 0.1
# Of a weight, so that any number of layers can share a rate.
_LARGEST_EXPONENT = 50.0
# Rounding of sums of a few probabilities.
_TOLERANCE = 1e-9


def unprotected(rises: Sequence[float], skip: SkipConfig) -> list[int]:
    """The layers that may be skipped: neither in `never_skip` nor above `protect_above`."""
    return [layer for layer, rise in enumerate(rises) if layer not in skip.never_skip and rise <= skip.protect_above]


def redundancy_probabilities(
    rises: Sequence[float], skip: SkipConfig, groups: Sequence[Sequence[int]]
) -> tuple[float, ...]:
    """The highest skip probability of each layer, from its rise; they average to alpha over all layers.

    groups: every layer of the model is in one; each group's probabilities sum to the same, so that all can skip the
    same number. Raises ConfigError where alpha is more than the layers that may be skipped can bear.
    """
    largest = largest_alpha(rises, skip, groups)
    if skip.alpha > largest + _TOLERANCE:
        raise ConfigError(f"skip.{next(alpha_problems(rises, skip, groups))}")
    count = min(skip.alpha, largest) * len(rises) / len(groups)
    found = [0.0] * len(rises)
    free = set(unprotected(rises, skip))
    for group in groups:
        layers = [layer for layer in group if layer in free]
        weights = [math.exp(-min(max(rises[layer], 0.0) / _TEMPERATURE, _LARGEST_EXPONENT)) for layer in layers]
        for layer, probability in zip(layers, shares(weights, count), strict=True):
            found[layer] = probability
    return tuple(found)


def shares(weights: Sequence[float], total: float) -> list[float]:
    """Probabilities in proportion to weights above 0 that sum to `total`: where one would exceed 1 it is 1, and the
    others share what is left."""
    assert 0.0 <= total <= len(weights) + _TOLERANCE
    found = [0.0] * len(weights)
    free, left = set(range(len(weights))), min(total, float(len(weights)))
    while free:
        scale = left / sum(weights[place] for place in free)
        full = {place for place in free if scale * weights[place] >= 1.0}
        if not full:
            for place in free:
                found[place] = scale * weights[place]
            break
        for place in full:
            found[place] = 1.0
        free -= full
        left = max(0.0, left - len(full))
    return found


def largest_alpha(rises: Sequence[float], skip: SkipConfig, groups: Sequence[Sequence[int]]) -> float:
    """The largest alpha that these groups can bear: that of the one with the fewest layers that may be skipped."""
    free = set(unprotected(rises, skip))
    return min(sum(layer in free for layer in group) for group in groups) * len(groups) / len(rises)


def alpha_problems(rises: Sequence[float], skip: SkipConfig, groups: Sequence[Sequence[int]]) -> Iterator[str]:
    """Why alpha cannot be reached, beginning with the field; nothing where it can."""
    largest = largest_alpha(rises, skip, groups)
    if skip.alpha <= largest + _TOLERANCE:
        return
    free = unprotected(rises, skip)
    counts = [sum(layer in free for layer in group) for group in groups]
    fewest = counts.index(min(counts))
    where = ""
    if len(groups) > 1:
        where = (
            f"; the group of layers {groups[fewest][0]} to {groups[fewest][-1]} has {counts[fewest]} of them, and all "
            f"{len(groups)} groups skip the same number"
        )
    kept = [layer for layer in range(len(rises)) if layer not in free]
    yield (
        f"alpha is {skip.alpha:g}, but layers {kept} are not skipped (a rise above protect_above "
        f"{skip.protect_above:g}, or never_skip){where}: the largest alpha possible is {largest:.4g}; lower alpha or "
        "raise protect_above" + (", or choose fewer groups" if len(groups) > 1 else "")
    )


def expected_rise(probabilities: Sequence[float], rises: Sequence[float]) -> float:
    """Sum of the rises of the layers that a step skips, in the mean: what a plan costs if each layer's harm adds up."""
    return sum(probability * rise for probability, rise in zip(probabilities, rises, strict=True))
