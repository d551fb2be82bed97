"""The recipe's keys of a stage's data."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from megatron_sts.config.architecture import ConfigModel

DATA_SUFFIXES = (".json", ".jsonl")
"""Endings of data files; data without one is a directory of shards."""


class DataConfig(ConfigModel):
    """The data of one stage."""

    train: Path
    """LLaVA json or jsonl file; without such a suffix a directory of webdataset shards, which hold their images."""
    validation: Annotated[float, Field(gt=0, lt=1)] | Path | None = None
    """Held-out records: a file or a directory of shards like train, with the same images; or a share of the records of
    train, evenly spread, that are then not trained on. None: no validation."""
    images: Path | None = None
    """Directory of the image files that a json file names; None: text only, or shards."""
    image_aspect_ratio: Literal["square", "pad"] = "square"
    """square: pictures are processed as the tower's processor says; pad: they are padded to a square before, in the
    processor's mean colour, as in LLaVA-1.5."""
    template: Literal["plain", "vicuna_v1", "chatml", "llama3", "mipha_phi", "mipha_gemma", "tokenizer"] = "vicuna_v1"
    """Conversation template; tokenizer: the chat template of the tokenizer itself."""
    system_prompt: str | None = None
    """System prompt; None: the template's own, empty: none."""
    samples: int | None = Field(default=None, ge=1)
    """Number of records: for planning without the data, and checked against it when it is there."""
    text_tokens: int | None = Field(default=None, ge=1)
    """Mean text tokens of a record: for planning without the data."""
    max_tokens: int = Field(default=2048, ge=1)
    """Longest sequence after compression, in tokens."""
    too_long: Literal["error", "cut", "set_aside", "drop_turns"] = "drop_turns"
    """What becomes of a record that is longer: error: training does not start; cut: it ends at max_tokens, and is set
    aside where that would cut an image or every answer; set_aside: it is not trained on; drop_turns: its last questions
    and answers are left out until it fits, and it is set aside where its first ones do not."""
    group_by_length: bool = False
    """Whether the samples of a step are of like length, and all with images or all without; saves padding."""
    packing: bool = False
    """Whether the samples of a micro-batch lie end to end in one row, each attending to itself alone, instead of padded
    side by side; a step's micro-batches are then cut by length, `batch.micro` samples each in the mean."""
    workers: int | None = Field(default=None, ge=0)
    """Processes that load images, per rank; 0: in the training process; None: up to 4 with a GPU and images, as many as
    there are cores for, else 0."""
    max_bad_records: float = Field(default=0.01, ge=0)
    """Records that may be set aside because they, or an image of theirs, cannot be read, before training or while it
    runs; one more ends the run. Below 1 a share of all records, else a number of them."""

    @property
    def in_shards(self) -> bool:
        """Whether `train` is a directory of shards."""
        return self.train.suffix not in DATA_SUFFIXES

    @property
    def has_images(self) -> bool:
        """Whether samples may have images."""
        return self.images is not None or self.in_shards
