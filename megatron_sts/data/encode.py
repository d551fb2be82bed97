"""From a conversation to token ids and the labels a loss is taken on.

The rendered conversation is tokenized once and whole, so that it reads as it will at inference; what is
supervised is found afterwards by character offsets.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from transformers import PreTrainedTokenizerBase

from megatron_sts.data.sample import IMAGE_TOKEN, Sample
from megatron_sts.data.templates import Template
from megatron_sts.errors import DataError, shown

IGNORED_LABEL = -100


@dataclass(frozen=True, slots=True)
class Encoded:
    """A tokenized conversation.

    `token_ids` hold one `<image>` id per image. `labels[i]` is `token_ids[i]` where supervised, else -100:
    aligned with the tokens, not yet shifted. `weights[i]` multiplies its loss; None: all supervised tokens count 1.
    """

    token_ids: list[int]
    labels: list[int]
    weights: list[float] | None = None


def encode(
    sample: Sample,
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    system_prompt: str | None = None,
) -> Encoded:
    """Renders, tokenizes and labels one conversation; `template.prompt` tokenized alone is a prefix of it.

    The first `sample.token_limit` tokens of it, where there is a limit.

    Raises:
        DataError: the tokenizer is not a fast one, lacks `<image>` or a token of the template, or joins a prompt
            and its answer in one token.
    """
    check_tokenizer(template, tokenizer)
    segments = template.render(sample, system_prompt)
    text = "".join(segment.text for segment in segments)
    encoding = tokenizer(
        text, add_special_tokens=adds_special_tokens(text, tokenizer), return_offsets_mapping=True, verbose=False
    )
    token_ids: list[int] = encoding["input_ids"]
    if sample.images:
        marks = token_ids.count(image_token_id(tokenizer))
        if marks != len(sample.images):
            raise DataError(
                f"sample {shown(sample.id)}: found {marks} {IMAGE_TOKEN} in the human turns for "
                f"{len(sample.images)} images; write one {IMAGE_TOKEN} for each image"
            )

    # supervised_before[i]: how many of the first i characters are supervised.
    lengths = [len(segment.text) for segment in segments]
    weights = np.array([segment.weight for segment in segments])
    supervised = np.repeat(weights > 0, lengths)
    supervised_before = np.concatenate([[0], np.cumsum(supervised)])
    # numpy takes thrice as long for a list of pairs.
    offsets = np.fromiter(chain.from_iterable(encoding["offset_mapping"]), dtype=np.int64, count=2 * len(token_ids))
    starts, ends = offsets.reshape(-1, 2).T
    inside = supervised_before[ends] - supervised_before[starts]
    # Tokens of no width (a begin-of-sequence token) are nobody's words.
    learnt = (inside == ends - starts) & (ends > starts)
    joined = (inside > 0) & ~learnt & ~supervised[np.minimum(starts, len(text) - 1)]
    if joined.any():
        start, end = int(starts[joined][0]), int(ends[joined][0])
        raise DataError(
            f"sample {shown(sample.id)}: the tokenizer makes one token of {shown(text[start:end])}, the end of a "
            f"prompt and the start of an answer in the template {template.name!r}; use a tokenizer that "
            "splits between the two"
        )
    labels = np.where(learnt, np.array(token_ids, dtype=np.int64), IGNORED_LABEL)
    limit = sample.token_limit
    if ((weights == 0) | (weights == 1)).all():
        return Encoded(token_ids[:limit], labels.tolist()[:limit])
    of_tokens = np.repeat(weights, lengths)[np.minimum(starts, len(text) - 1)] * learnt
    return Encoded(token_ids[:limit], labels.tolist()[:limit], of_tokens.tolist()[:limit])


def encode_guide(sample: Sample, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of the human turns as they were written, without `<image>`: also where a template drops them.

    Contract: never a word of an answer; visual tokens are chosen by these, and labels must not leak.
    """
    text = _guide(sample)
    token_ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] if text else []
    return token_ids


def lacks_guide(sample: Sample) -> bool:
    """Whether a sample has pictures, but no human words to choose their visual tokens by."""
    return bool(sample.images) and not _guide(sample)


def _guide(sample: Sample) -> str:
    turns = (turn.text.replace(IMAGE_TOKEN, " ").strip() for turn in sample.turns if turn.role == "human")
    return "\n".join(turn for turn in turns if turn)


def adds_special_tokens(text: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer is to add a begin-of-sequence token: not where a chat template wrote it already."""
    return tokenizer.bos_token is None or not text.startswith(tokenizer.bos_token)


def count_supervised(labels: Sequence[int]) -> int:
    """Labels that carry a loss. The first token has no position before it that could predict it."""
    return len(labels[1:]) - labels[1:].count(IGNORED_LABEL)


def image_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id of the special token `<image>`.

    Raises:
        DataError: the tokenizer has no such token, or would break it up.
    """
    token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    # A tokenizer that does not know the token answers with the id of its unknown token, or with None.
    added = tokenizer.added_tokens_decoder.get(token_id) if isinstance(token_id, int) else None
    if not isinstance(token_id, int) or added is None or added.content != IMAGE_TOKEN:
        raise DataError(
            f"tokenizer {tokenizer.name_or_path!r}: has no special token {IMAGE_TOKEN}; use that of "
            "the checkpoint that `tools/convert.py import` writes, or add it with "
            f"tokenizer.add_tokens(['{IMAGE_TOKEN}'], special_tokens=True) and save the tokenizer again"
        )
    return token_id


def pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id that fills a sequence up. Any id would do: padding comes last and carries no loss."""
    for token_id in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token_id is not None:
            return int(token_id)
    return 0


def check_tokenizer(template: Template, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise DataError where the tokenizer gives no character offsets, or lacks a token of the template."""
    if not tokenizer.is_fast:
        raise DataError(
            f"tokenizer {tokenizer.name_or_path!r}: found a {type(tokenizer).__name__}, which gives no "
            "character offsets; use a fast tokenizer (a directory with tokenizer.json)"
        )
    for token in template.special_tokens:
        if tokenizer.backend_tokenizer.token_to_id(token) is None:
            raise DataError(
                f"tokenizer {tokenizer.name_or_path!r}: has no token {token!r}, which the template "
                f"{template.name!r} writes; use the template of the tokenizer's own model, or add the token"
            )
