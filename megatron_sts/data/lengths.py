"""What becomes of samples that are longer than `data.max_tokens`."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from megatron_sts.data.encode import Encoded, count_supervised, encode, image_token_id
from megatron_sts.data.index import SampleIndex, listed
from megatron_sts.data.picked_samples import PickedSamples
from megatron_sts.data.sample import Sample
from megatron_sts.data.templates import Template
from megatron_sts.errors import DataError, shown

OverLong = Literal["error", "cut", "drop"]


@dataclass(frozen=True)
class FittedSamples(PickedSamples):
    """The samples that are left, in their order, some with a `token_limit`.

    samples: all of them. limits: the limit of each that is cut, by its number.
    """

    samples: Sequence[Sample]
    limits: dict[int, int] = field(default_factory=dict)

    def sample(self, number: int) -> Sample:
        """A sample of them all, with its limit."""
        sample = self.samples[number]
        return replace(sample, token_limit=self.limits[number]) if number in self.limits else sample


@dataclass(frozen=True)
class Fitted:
    """Samples that all fit, and their index. cut, left_out: the numbers of those that were too long."""

    samples: Sequence[Sample]
    index: SampleIndex
    cut: tuple[int, ...] = ()
    left_out: tuple[int, ...] = ()

    def text(self, max_tokens: int) -> str:
        """How many were cut and left out, as a remark; empty where all fitted."""
        if not (self.cut or self.left_out):
            return ""
        return f" ({len(self.cut):,} cut at {max_tokens} tokens, {len(self.left_out):,} longer ones left out)"


def fit_lengths(
    index: SampleIndex,
    samples: Sequence[Sample],
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    system_prompt: str | None,
    visual_tokens: int,
    max_tokens: int,
    over_long: OverLong,
) -> Fitted:
    """Samples and their index such that none is longer than `max_tokens` when an image takes `visual_tokens`.

    A pure function of its arguments: every rank finds the same. Only samples that are too long are encoded.

    Raises:
        DataError: there are such samples and `over_long` is error.
    """
    lengths = index.lengths(visual_tokens)
    numbers = np.flatnonzero(lengths > max_tokens).tolist()
    if not numbers:
        return Fitted(samples, index)
    if over_long == "error":
        long = [f"{shown(samples[number].id)} ({lengths[number]} tokens)" for number in numbers]
        remedy = (
            f"raise data.max_tokens to {lengths.max()} if the model's maximum_positions allow it, set data.over_long "
            f"to cut or drop, keep fewer visual tokens than {visual_tokens} an image, or remove the records"
        )
        raise DataError(listed(long, len(samples), f"are longer than data.max_tokens {max_tokens}", remedy))

    limits: dict[int, int] = {}
    text_tokens, supervised = index.text_tokens.copy(), index.supervised.copy()
    for number in numbers if over_long == "cut" else []:
        encoded = encode(samples[number], template, tokenizer, system_prompt)
        limit = token_limit(encoded, image_token_id(tokenizer), visual_tokens, max_tokens)
        if limit is not None:
            limits[number] = limit
            text_tokens[number] = limit - index.images[number]
            supervised[number] = count_supervised(encoded.labels[:limit])
    left_out = [number for number in numbers if number not in limits]
    is_left = np.ones(len(samples), dtype=bool)
    is_left[left_out] = False
    left = np.flatnonzero(is_left)
    fitted = replace(index, text_tokens=text_tokens, supervised=supervised).of(left)
    return Fitted(FittedSamples(left, samples, limits), fitted, tuple(limits), tuple(left_out))


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
