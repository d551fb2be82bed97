"""Which records a stage validates on: those of a file of their own, or a share of what it would train on."""

from pathlib import Path

import numpy as np

from megatron_sts.config import Recipe, StageConfig
from megatron_sts.sts import held_out_share


def is_held_out(stage: StageConfig, numbers: np.ndarray) -> np.ndarray:
    """Whether the records of `data.train` of these numbers are held out: evenly spread, the same in every run.

    It follows from a record's number in the file alone, so that one that is set aside moves no other.
    """
    share = held_out_share(stage)
    numerator, denominator = share.numerator, share.denominator
    return numerator * numbers // denominator < numerator * (numbers + 1) // denominator


def validation_stage(recipe: Recipe, stage: StageConfig, held_out: Path) -> StageConfig:
    """The stage that reads held-out records of a file: each whole, with all visual tokens of its images.

    Its name is the stage's with "-validation", under which its index is kept.
    """
    data = stage.data.model_copy(
        update={
            "train": held_out,
            "validation": None,
            "samples": None,
            "max_tokens": recipe.architecture.language.longest_sequence,
            "too_long": "set_aside",
            "packing": False,
            "group_by_length": False,
        }
    )
    compress = stage.compress and stage.compress.model_copy(update={"full_share": 1.0})
    changes = {"name": f"{stage.name}-validation", "data": data, "compress": compress, "steps": 1, "epochs": None}
    return stage.model_copy(update=changes)
