"""Schedules of sparsity: skip probabilities of layers, and the number of visual tokens kept."""

import math

from megatron_sts.config import SkipConfig, probability_problem
from megatron_sts.errors import ConfigError


def skip_probabilities(layers: int, progress: float, skip: SkipConfig) -> tuple[float, ...]:
    """Skip probability of each layer at a progress e / E in [0, 1], before layers are exempted or balanced.

    The product of `peak_probabilities` and `decay`; with schedule `sts` (arXiv 2509.18150, Layer Dynamic Skipper):
    p_l(e) = alpha * ((E - e) / E)^2 * (1 + epsilon * (2 l - (L - 1)) / (L - 1)) with l = 0 .. L-1.

    Raises ConfigError where alpha and epsilon do not give probabilities.
    """
    factor = decay(progress, skip)
    return tuple(factor * peak for peak in peak_probabilities(layers, skip))


def peak_probabilities(layers: int, skip: SkipConfig) -> tuple[float, ...]:
    """The highest skip probability of each layer over a stage; they average to alpha.

    `sts` and `constant`: alpha * (1 + epsilon * (2 l - (L - 1)) / (L - 1)), with a single layer alpha. `pld`:
    alpha * 2 (l + 1) / (L + 1), the linear depth profile of progressive layer drop (arXiv 2010.13369).
    Raises ConfigError where alpha and epsilon do not give probabilities.
    """
    assert layers >= 1
    problem = probability_problem(skip, layers)
    if problem is not None:
        raise ConfigError(f"skip.{problem}")
    if skip.schedule == "pld":
        return tuple(skip.alpha * 2 * (layer + 1) / (layers + 1) for layer in range(layers))
    if layers == 1:
        return (skip.alpha,)
    depth = (1.0 + skip.epsilon * (2 * layer - (layers - 1)) / (layers - 1) for layer in range(layers))
    return tuple(min(1.0, max(0.0, skip.alpha * factor)) for factor in depth)


def decay(progress: float, skip: SkipConfig) -> float:
    """Share of its highest value that every skip probability has at a progress in [0, 1].

    `sts`: (1 - progress)^2. `constant`: 1. `pld`: 1 - exp(-gamma t) with gamma t = 100 progress: progressive layer
    drop starts with all layers and soon reaches its rate (arXiv 2010.13369).
    """
    assert 0.0 <= progress <= 1.0
    if skip.schedule == "constant":
        return 1.0
    if skip.schedule == "pld":
        return -math.expm1(-100.0 * progress)
    return (1.0 - progress) ** 2


def ramp(passed: float, skip: SkipConfig) -> float:
    """Share of what the schedule says that holds where a share of the stage's steps has passed: `skip.ramp_ratio`."""
    return min(1.0, passed / skip.ramp_ratio) if skip.ramp_ratio else 1.0


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
