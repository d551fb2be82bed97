"""Schedules of sparsity: skip probabilities of layers, and the number of visual tokens kept."""

import math

from megatron_sts.errors import ConfigError


def check_skip_probabilities(alpha: float, epsilon: float) -> None:
    """Raise ConfigError unless p_l(e) is a probability for every layer and every progress."""
    if not 0.0 <= alpha <= 1.0:
        raise ConfigError(f"skip.alpha is {alpha:g}; it is the mean skip probability at the start, from 0 to 1")
    if not -1.0 <= epsilon <= 1.0:
        raise ConfigError(f"skip.epsilon is {epsilon:g}; it tilts the probability over depth, from -1 to 1")
    largest = alpha * (1.0 + abs(epsilon))
    if largest > 1.0 + 1e-12:
        raise ConfigError(
            f"skip.alpha {alpha:g} with skip.epsilon {epsilon:g} gives a layer the skip probability {largest:g}, "
            f"above 1; lower skip.alpha to at most {1.0 / (1.0 + abs(epsilon)):.4g}"
        )


def skip_probabilities(layers: int, progress: float, alpha: float, epsilon: float) -> tuple[float, ...]:
    """Skip probability of each layer at a progress in [0, 1] (arXiv 2509.18150, Layer Dynamic Skipper).

    p_l(e) = alpha * ((E - e) / E)^2 * (1 + epsilon * (2 l - (L - 1)) / (L - 1)) with l = 0 .. L-1 and
    `progress` = e / E. The depth factor averages to 1; with a single layer it is 1.

    Raises ConfigError where alpha and epsilon do not give probabilities.
    """
    check_skip_probabilities(alpha, epsilon)
    assert layers >= 1 and 0.0 <= progress <= 1.0
    decay = alpha * (1.0 - progress) ** 2
    if layers == 1:
        return (decay,)
    depth = (1.0 + epsilon * (2 * layer - (layers - 1)) / (layers - 1) for layer in range(layers))
    return tuple(min(1.0, max(0.0, decay * factor)) for factor in depth)


def kept_visual_tokens(visual_tokens: int, keep_ratio: float) -> int:
    """Visual tokens kept of one image: K = max(1, floor(N r + 0.5))."""
    if not 0.0 < keep_ratio <= 1.0:
        raise ConfigError(
            f"compress.keep_ratio is {keep_ratio:g}; it is the share of visual tokens kept, above 0 up to 1"
        )
    return max(1, math.floor(visual_tokens * keep_ratio + 0.5))


def uniform_indices(visual_tokens: int, kept: int) -> tuple[int, ...]:
    """Indices that `uniform` keeps of an image's visual tokens: floor(i N / K), i = 0 .. K-1, in order."""
    assert 1 <= kept <= visual_tokens
    return tuple(i * visual_tokens // kept for i in range(kept))
