"""How many steps a stage of training has."""

import math
from fractions import Fraction

from megatron_sts.config import StageConfig
from megatron_sts.errors import ConfigError


def steps_of_epochs(samples: int, global_batch: int, epochs: float) -> int:
    """Whole steps in a number of epochs, at least one."""
    # The decimal number as it was written: 0.29 of 100 samples are 29 samples, not 28.999999999999996.
    return max(1, math.floor(Fraction(repr(float(epochs))) * samples / global_batch))


def held_out_share(stage: StageConfig) -> Fraction:
    """Share of the records of `data.train` that are held out: of the first n of them floor(share n)."""
    share = stage.data.validation
    return Fraction(repr(share)) if isinstance(share, float) else Fraction(0)


def trained_samples(stage: StageConfig, records: int) -> int:
    """Of so many records of `data.train` those that are trained on, none set aside."""
    return records - math.floor(held_out_share(stage) * records)


def stage_steps(stage: StageConfig, samples: int) -> int:
    """Steps of a stage over that many samples."""
    if stage.steps is not None:
        return stage.steps
    assert stage.epochs is not None
    return steps_of_epochs(samples, stage.batch.global_size, stage.epochs)


def check_sample_count(stage: StageConfig, found: int) -> None:
    """Raise ConfigError where `data.samples` is not the number of records that the data file holds."""
    expected = stage.data.samples
    if expected is not None and expected != found:
        raise ConfigError(
            f"stages.{stage.name}.data.samples is {expected}, but {stage.data.train} holds {found} "
            "records; correct it or remove it"
        )
