"""Errors of a stage's own settings, with the whole name of the recipe's key."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import BaseModel

from megatron_sts.config.compress_config import CompressConfig
from megatron_sts.config.data_config import DataConfig
from megatron_sts.config.skip_config import SkipConfig
from megatron_sts.config.training_config import BatchConfig, LearningRateConfig
from megatron_sts.errors import MegatronStsError

_BLOCKS: dict[str, type[BaseModel]] = {
    "data": DataConfig,
    "batch": BatchConfig,
    "learning_rate": LearningRateConfig,
    "skip": SkipConfig,
    "compress": CompressConfig,
}
_KEYS = "|".join(
    rf"{block}\.(?:{'|'.join(field.serialization_alias or name for name, field in model.model_fields.items())})"
    for block, model in _BLOCKS.items()
)
# Neither the end of a whole name, nor part of a path, nor a file of that name.
_SHORT = re.compile(rf"(?<![\w./-])(?:{_KEYS})\b(?![./])")


@contextmanager
def keys_of_stage(stage: str) -> Iterator[None]:
    """Typed errors raised inside name `data.max_tokens` as `stages.tune.data.max_tokens`.

    What reads data or cuts batches knows the settings, not whose they are; the user changes one stage.
    """
    try:
        yield
    except MegatronStsError as error:
        error.args = (_SHORT.sub(rf"stages.{stage}.\g<0>", str(error)), *error.args[1:])
        raise
