"""What `length_rounding` costs, and what it spares: the sequence lengths of steps over samples of made-up lengths."""

from dataclasses import dataclass

import numpy as np

from megatron_sts.config import Recipe, StageConfig
from megatron_sts.parallel.sequence import legal_length, length_rounding, padded_length
from megatron_sts.planning.costs import images_per_sample

STEPS = 1000
"""Steps that are drawn."""
# Instruction data has many short answers and a long tail: tokens of a text fall within a factor of 2.2 of their
# median two times out of three.
_DEVIATION = 0.8
# As data/sampler.py groups by length.
_STEPS_SORTED_TOGETHER = 8


@dataclass(frozen=True)
class RoundedLengths:
    """Of the steps drawn. multiple: `length_rounding`. distinct, distinct_unrounded: how many lengths they have with it
    and without. more_positions: share of positions that rounding adds to those that are computed without."""

    multiple: int
    distinct: int
    distinct_unrounded: int
    more_positions: float


def rounded_lengths(recipe: Recipe, stage: StageConfig, visual_tokens: int) -> RoundedLengths | None:
    """Over samples whose text has the recipe's mean length, and so many visual tokens; None where samples are packed.

    Text lengths are log-normal, cut to `data.max_tokens`: `tools/prepare_data.py check --config` counts the data's own.
    """
    data, size = stage.data, stage.batch.global_size
    if data.packing or data.text_tokens is None:
        return None
    draw = np.random.default_rng(0)
    mean = np.log(data.text_tokens) - _DEVIATION**2 / 2
    visual = images_per_sample(stage) * visual_tokens
    drawn = draw.lognormal(mean, _DEVIATION, (STEPS, size))
    texts = np.clip(np.rint(drawn), 1, max(1, data.max_tokens - visual)).astype(int)
    if data.group_by_length:
        texts = np.sort(texts.reshape(-1, _STEPS_SORTED_TOGETHER * size), axis=1).reshape(STEPS, size)
    longest = (texts.max(axis=1) + visual).tolist()
    rounded = [padded_length(length, recipe) for length in longest]
    least = [legal_length(length, recipe) for length in longest]
    more = sum(rounded) / sum(least) - 1
    return RoundedLengths(length_rounding(recipe), len(set(rounded)), len(set(least)), more)
