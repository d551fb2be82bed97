"""What becomes of samples that are longer than `data.max_tokens`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from megatron_sts.data.encode import Encoded, count_supervised, encode, image_token_id
from megatron_sts.data.index import SampleIndex, indexed, listed, measured
from megatron_sts.data.picked_samples import PickedSamples
from megatron_sts.data.sample import IMAGE_TOKEN, Sample
from megatron_sts.data.templates import Template
from megatron_sts.errors import DataError, shown

TooLong = Literal["error", "cut", "set_aside", "drop_turns"]


@dataclass(frozen=True)
class FittedSamples(PickedSamples):
    """The samples that are left, in their order, some of them shorter than they were.

    samples: all of them. limits: the `token_limit` of each that is cut, by its number. turns: how many turns are left
    of each that lost some.
    """

    samples: Sequence[Sample]
    limits: dict[int, int] = field(default_factory=dict)
    turns: dict[int, int] = field(default_factory=dict)

    def sample(self, number: int) -> Sample:
        """A sample of them all, as long as it may be."""
        sample = self.samples[number]
        if number in self.turns:
            return first_turns(sample, self.turns[number])
        return replace(sample, token_limit=self.limits[number]) if number in self.limits else sample


@dataclass(frozen=True)
class Fitted:
    """Samples that all fit, and their index. set_aside: the numbers of those that were too long and are left out."""

    samples: FittedSamples
    index: SampleIndex
    set_aside: tuple[int, ...] = ()


def fit_lengths(
    index: SampleIndex,
    samples: Sequence[Sample],
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    system_prompt: str | None,
    visual_tokens: int,
    max_tokens: int,
    too_long: TooLong,
    among: np.ndarray | None = None,
) -> Fitted:
    """Samples and their index such that none is longer than `max_tokens` when an image takes `visual_tokens`.

    A pure function of its arguments: every rank finds the same. Only samples that are too long are encoded.
    among: the numbers of the samples that count, in order; None: all of them.

    Raises:
        DataError: there are such samples and `too_long` is error.
    """
    lengths = index.lengths(visual_tokens)
    among = np.arange(len(samples)) if among is None else among
    numbers = among[lengths[among] > max_tokens].tolist()
    if not numbers:
        return Fitted(FittedSamples(among, samples), index.of(among))
    if too_long == "error":
        long = [f"{shown(samples[number].id)} ({lengths[number]} tokens)" for number in numbers]
        remedy = (
            f"raise data.max_tokens to {lengths[among].max()} if the model's maximum_positions allow it, set "
            f"data.too_long to drop_turns, cut or set_aside, keep fewer visual tokens than {visual_tokens} an image, "
            "or remove the records"
        )
        raise DataError(listed(long, len(samples), f"are longer than data.max_tokens {max_tokens}", remedy))

    limits: dict[int, int] = {}
    turns: dict[int, int] = {}
    set_aside: list[int] = []
    rows: dict[int, tuple[int, ...]] = {}
    for number in numbers:
        sample = samples[number]
        row: tuple[int, ...] | None = None
        if too_long == "cut":
            encoded = encode(sample, template, tokenizer, system_prompt)
            limit = token_limit(encoded, image_token_id(tokenizer), visual_tokens, max_tokens)
            if limit is not None:
                limits[number] = limit
                row = indexed(sample, Encoded(encoded.token_ids[:limit], encoded.labels[:limit]), tokenizer)
        elif too_long == "drop_turns":
            measure = partial(measured, template=template, tokenizer=tokenizer, system_prompt=system_prompt)
            kept, row = turns_that_fit(sample, measure, visual_tokens, max_tokens)
            if row is not None:
                turns[number] = kept
        if row is None:
            set_aside.append(number)
        else:
            rows[number] = row
    left = among[~np.isin(among, set_aside)]
    return Fitted(FittedSamples(left, samples, limits, turns), index.replaced(rows).of(left), tuple(set_aside))


def turns_that_fit(
    sample: Sample, measure: Callable[[Sample], tuple[int, ...] | str], visual_tokens: int, max_tokens: int
) -> tuple[int, tuple[int, ...] | None]:
    """How many of a sample's first turns fill at most `max_tokens` positions, and what SampleIndex has of these.

    Question and answer go together, and with a question its images. None where the first two do not fit, or where
    nothing of those that do is learnt. measure: see `data.index.measured`.
    """
    fits, row = 0, None
    too_many = len(sample.turns) // 2
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        found = measure(first_turns(sample, 2 * middle))
        # What cannot be encoded is as good as too long.
        if isinstance(found, str) or found[0] + found[1] * visual_tokens > max_tokens:
            too_many = middle
        else:
            fits, row = middle, found
    return 2 * fits, row if row is not None and row[2] else None


def first_turns(sample: Sample, count: int) -> Sample:
    """The beginning of a conversation, with the images of these turns."""
    turns = sample.turns[:count]
    images = sum(turn.text.count(IMAGE_TOKEN) for turn in turns if turn.role == "human")
    return replace(sample, turns=turns, images=sample.images[:images])


def token_limit(encoded: Encoded, image_token: int, visual_tokens: int, max_tokens: int) -> int | None:
    """How many of a sample's token ids fill at most `max_tokens` positions.

    None where an image or every supervised token lies beyond.
    """
    is_image = np.array(encoded.token_ids) == image_token
    ends = np.cumsum(np.where(is_image, visual_tokens, 1))
    limit = int((ends <= max_tokens).sum())
    if is_image[limit:].any() or not count_supervised(encoded.labels[:limit]):
        return None
    return limit
