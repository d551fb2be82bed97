"""How much of what a stage computes is padding, by the way in which its samples are put together."""

from typing import Any

import numpy as np

from megatron_sts.config import Recipe, StageConfig
from megatron_sts.data.index import SampleIndex
from megatron_sts.data.packing import cut_by_length
from megatron_sts.data.sampler import LengthGroups, StepSampler
from megatron_sts.parallel.sequence import legal_length, padded_length, round_up, sample_multiple
from megatron_sts.sts import stage_steps

# More of them would not change a share that is told in percent.
_MOST_STEPS = 1000


def describe_steps(recipe: Recipe, stage: StageConfig, index: SampleIndex, visual_tokens: int) -> dict[str, Any]:
    """The steps of a stage over the samples of `index`, of whose images so many tokens are kept.

    Returns:
        `steps`; `padding`: the share of positions that is padding, over (at most 1000 steps of) an epoch: `neither`,
        `group_by_length`, `packing` and `both`, whichever the recipe has; `distinct_lengths`: over the same steps, as
        the recipe groups them and unpacked, how many sequence lengths there are by `length_rounding`, and `unrounded`.
    """
    lengths = index.lengths(visual_tokens)
    size, seed = stage.batch.global_size, recipe.seed
    groups = LengthGroups(index.lengths(recipe.architecture.visual_tokens), index.images > 0)
    orders = {False: StepSampler(len(index), size, seed), True: StepSampler(len(index), size, seed, groups)}
    of_steps = {
        grouped: [lengths[order.samples_of_step(step)] for step in range(min(_MOST_STEPS, max(1, len(index) // size)))]
        for grouped, order in orders.items()
    }
    ways = {"neither": (False, False), "group_by_length": (True, False), "packing": (False, True), "both": (True, True)}
    longest = [int(lengths.max()) for lengths in of_steps[stage.data.group_by_length]]
    return {
        "distinct_lengths": {
            "rounded": len({padded_length(length, recipe) for length in longest}),
            "unrounded": len({legal_length(length, recipe) for length in longest}),
        },
        "steps": stage_steps(stage, len(index)),
        "padding": {
            name: _padding(recipe, of_steps[grouped], size // stage.batch.micro if packed else None)
            for name, (grouped, packed) in ways.items()
        },
    }


def _padding(recipe: Recipe, steps: list[np.ndarray], micro_batches: int | None) -> float:
    """Of steps whose samples have these lengths; packed into so many rows, or each sample in one of its own."""
    tokens = positions = 0
    multiple = sample_multiple(recipe.parallel.context)
    for lengths in steps:
        rows = lengths
        if micro_batches is not None:
            padded = np.array([round_up(length, multiple) for length in lengths.tolist()])
            rows = np.array([padded[places].sum() for places in cut_by_length(lengths.tolist(), micro_batches)])
        tokens += int(lengths.sum())
        padded_row = padded_length if micro_batches is None else legal_length
        positions += padded_row(int(rows.max()), recipe) * len(rows)
    return 1 - tokens / positions
