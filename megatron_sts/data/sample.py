"""One conversation and the pictures it talks about."""

from dataclasses import dataclass
from typing import Literal

from megatron_sts.data.embedded_image import EmbeddedImage
from megatron_sts.errors import DataError
from megatron_sts.records import Member

IMAGE_TOKEN = "<image>"

Role = Literal["human", "assistant"]
Picture = str | Member | EmbeddedImage
"""A path relative to the image folder, a file in a shard, or what stands in the record itself."""


class RecordError(DataError):
    """Why a record is no sample: its first problem, with the field, what was found and what to do."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side says. A human turn marks each picture with `<image>`.

    weight: multiplies the loss of an answer's tokens; 0: the answer is context only. A human turn carries no loss.
    """

    role: Role
    text: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Sample:
    """A conversation as its author wrote it, before any template.

    Contract: turns alternate, human first and assistant last; the human turns hold as many `<image>` marks as
    `images` has pictures, in the same order. `sample_of_record` checks this, templates and `encode` rely on it.
    """

    id: str
    turns: tuple[Turn, ...]
    images: tuple[Picture, ...]
    system: str | None = None
    """System prompt of this conversation, which goes before the recipe's and the template's; None: it has none."""
    token_limit: int | None = None
    """Token ids that `encode` keeps, each `<image>` counted once; None: all of them."""

    @property
    def is_learnt(self) -> bool:
        """Whether any answer carries a loss, as far as can be told without a tokenizer."""
        return any(turn.weight for turn in self.turns if turn.role == "assistant")


def placed_images(text: str) -> str:
    """A human turn as every template writes it.

    A single `<image>` comes first, wherever it stood, on a line of its own, as LLaVA-1.5 has it. Of several, those
    at the start stand one a line, the others where they were written, as in LLaVA-NeXT.

    Contract: `data.templates.template.READ_MESSAGE` does the same in jinja.
    """
    rest, first = text.strip(), 0
    if rest.count(IMAGE_TOKEN) == 1:
        rest, first = rest.replace(IMAGE_TOKEN, "").strip(), 1
    while rest.startswith(IMAGE_TOKEN):
        rest, first = rest.removeprefix(IMAGE_TOKEN).strip(), first + 1
    return "\n".join([IMAGE_TOKEN] * first + ([rest] if rest else []))
