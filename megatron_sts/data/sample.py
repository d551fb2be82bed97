"""One conversation and the pictures it talks about."""

from dataclasses import dataclass
from typing import Literal

IMAGE_TOKEN = "<image>"

Role = Literal["human", "assistant"]


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side says. A human turn marks each picture with `<image>`."""

    role: Role
    text: str


@dataclass(frozen=True, slots=True)
class Sample:
    """A conversation as its author wrote it, before any template.

    Contract: turns alternate, human first and assistant last; the human turns hold as many `<image>` marks as
    `images` holds paths, in the same order. `read_llava_json` checks this, templates and `encode` rely on it.
    """

    id: str
    turns: tuple[Turn, ...]
    images: tuple[str, ...]
    """Paths relative to the image folder."""
