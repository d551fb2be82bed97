"""What the Visual Token Compressor keeps: how many tokens in a step, and which of an image (arXiv 2509.18150)."""

import math
from dataclasses import dataclass

from megatron_sts.config import CompressConfig, KeepScheduleConfig
from megatron_sts.sts.schedule import kept_visual_tokens
from megatron_sts.sts.streams import stream


@dataclass(frozen=True)
class Draws:
    """Names the draws of one training step: seed of the recipe, name of the stage, 0-based step."""

    seed: int
    stage: str
    step: int

    def kept(self, visual_tokens: int, kept: int, sample: int, image: int) -> tuple[int, ...]:
        """A fresh subset of an image's tokens, in order; image: its 0-based place among the sample's images.

        A pure function of the names, so that every layout and every resume draws the same.
        """
        assert 1 <= kept <= visual_tokens
        numbers = stream(self.seed, self.stage, self.step, "visual tokens", sample, image)
        keys = [numbers.random() for _ in range(visual_tokens)]
        return tuple(sorted(sorted(range(visual_tokens), key=keys.__getitem__)[:kept]))


def keep_ratio(schedule: KeepScheduleConfig, progress: float) -> float:
    """The share of visual tokens that is kept at a progress in [0, 1]; 1 is reached by a stage that was lengthened.

    linear: start + (end - start) e. cosine: start + (end - start) (1 - cos(pi e)) / 2. steps: the values one after
    another, each for the same part of the stage. constant: start.
    """
    assert 0.0 <= progress <= 1.0
    if schedule.kind == "steps":
        return schedule.values[min(int(progress * len(schedule.values)), len(schedule.values) - 1)]
    assert schedule.start is not None
    if schedule.kind == "constant":
        return schedule.start
    assert schedule.end is not None
    passed = progress if schedule.kind == "linear" else (1.0 - math.cos(math.pi * progress)) / 2
    return schedule.start + (schedule.end - schedule.start) * passed


def kept_tokens(compress: CompressConfig | None, visual_tokens: int, progress: float) -> int:
    """Visual tokens that an image keeps at a progress in [0, 1]."""
    if compress is None or compress.strategy == "none":
        return visual_tokens
    if compress.strategy == "mean_pool":
        assert compress.window is not None
        return windows(visual_tokens, compress.window)
    if compress.schedule is not None:
        return kept_visual_tokens(visual_tokens, keep_ratio(compress.schedule, progress))
    if compress.keep_tokens is not None:
        return compress.keep_tokens
    assert compress.keep_ratio is not None
    return kept_visual_tokens(visual_tokens, compress.keep_ratio)


def most_kept_tokens(compress: CompressConfig | None, visual_tokens: int) -> int:
    """The most visual tokens that an image keeps over a stage; the end of a schedule counts, which it approaches."""
    if compress is None or compress.schedule is None:
        return kept_tokens(compress, visual_tokens, 0.0)
    schedule = compress.schedule
    shares = [share for share in (schedule.start, schedule.end, *schedule.values) if share is not None]
    return kept_visual_tokens(visual_tokens, max(shares))


def scored_tokens(strategy: str, kept: int, visual_tokens: int) -> int:
    """Visual tokens of an image that are projected only to score them; none where all are kept."""
    return visual_tokens if strategy == "text_guided" and kept < visual_tokens else 0


def windows(visual_tokens: int, window: int) -> int:
    """Windows of window x window patches over a square grid of patches; those at the far edges may be smaller."""
    side = math.isqrt(visual_tokens)
    assert side * side == visual_tokens, "a square grid of patches"
    return (-(-side // window)) ** 2
