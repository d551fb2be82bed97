"""How long every sample is, found once before training, together with what is wrong with each.

Every rank computes a step's padded length from these numbers, also those that load no text.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from megatron_sts.data.embedded_image import EmbeddedImage
from megatron_sts.data.encode import (
    Encoded,
    check_tokenizer,
    count_supervised,
    encode,
    image_token_id,
    lacks_guide,
)
from megatron_sts.data.pictures import resolve_image
from megatron_sts.data.sample import Sample
from megatron_sts.data.templates import Template
from megatron_sts.data.workers import Progress, in_workers
from megatron_sts.errors import DataError, shown_path
from megatron_sts.parallel.sequence import Ranges
from megatron_sts.records import Member

SHOWN_RECORDS = 10

_SAMPLES_WORTH_A_WORKER = 4096
_MOST_WORKERS = 16


@dataclass(frozen=True)
class SampleIndex:
    """Of n samples; int32 [n], but for `image_positions`."""

    text_tokens: np.ndarray
    """Tokens without the `<image>` tokens."""
    images: np.ndarray
    supervised: np.ndarray
    """Tokens that carry a loss."""
    lacks_guide: np.ndarray
    """1 where there are images, but no human words to choose their visual tokens by; else 0."""
    image_positions: np.ndarray
    """int32 [sum of `images`]: place of each `<image>` among the tokens of its sample, one sample after another."""

    @classmethod
    def from_rows(cls, rows: Iterable[Sequence[int]]) -> "SampleIndex":
        """From what `measured` says of each sample."""
        rows = list(rows)
        counts = np.array([row[: len(COUNTS)] for row in rows], dtype=np.int32).reshape(-1, len(COUNTS))
        places = [place for row in rows for place in row[len(COUNTS) :]]
        named = dict(zip(COUNTS, counts.T.copy(), strict=True))
        return cls(**named, image_positions=np.array(places, dtype=np.int32))

    def __len__(self) -> int:
        return len(self.text_tokens)

    @cached_property
    def _first_images(self) -> np.ndarray:
        """int64 [n]: the number of each sample's first image. Found once: every step asks `of` several times."""
        return np.cumsum(self.images, dtype=np.int64) - self.images

    def of(self, indices: Sequence[int] | np.ndarray) -> "SampleIndex":
        """The index of some of the samples, in the order asked for."""
        chosen = np.asarray(indices, dtype=np.int64)
        counts = {name: getattr(self, name)[chosen] for name in COUNTS}
        held = self.images[chosen].astype(np.int64)
        firsts = self._first_images[chosen]
        # Of each image that is held its number here, less that of its sample's first one, plus that of it there.
        shift = np.repeat(firsts - (np.cumsum(held) - held), held)
        return SampleIndex(**counts, image_positions=self.image_positions[np.arange(len(shift)) + shift])

    def replaced(self, rows: Mapping[int, Sequence[int]]) -> "SampleIndex":
        """The index with other figures, see `measured`, for some of the samples, by their number."""
        new = SampleIndex.from_rows(rows.values())
        order = np.arange(len(self))
        order[list(rows)] = len(self) + np.arange(len(rows))
        both = (np.concatenate([getattr(self, one.name), getattr(new, one.name)]) for one in fields(self))
        return SampleIndex(*both).of(order)

    def lengths(self, visual_tokens: int) -> np.ndarray:
        """int64 [n]: positions each sample fills when an image takes `visual_tokens`."""
        return self.text_tokens.astype(np.int64) + self.images.astype(np.int64) * visual_tokens

    def text_ranges(self, visual_tokens: int) -> list[Ranges]:
        """Of each sample the positions [start, end) of its text when an image takes `visual_tokens`.

        Contract: `data/collate.py` puts text there.
        """
        ranges = []
        passed = 0
        for length, images in zip(self.lengths(visual_tokens).tolist(), self.images.tolist(), strict=True):
            places = self.image_positions[passed : passed + images].tolist()
            starts = [place + number * (visual_tokens - 1) for number, place in enumerate(places)]
            bounds = zip([0, *(start + visual_tokens for start in starts)], [*starts, length], strict=True)
            ranges.append(tuple((start, end) for start, end in bounds if start < end))
            passed += images
        return ranges


COUNTS = tuple(one.name for one in fields(SampleIndex) if one.name != "image_positions")
"""What SampleIndex has one number of for each sample."""
_NOTHING = (0,) * len(COUNTS)


def measure_samples(
    samples: Sequence[Sample],
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    system_prompt: str | None,
    images_root: Path | None,
    progress: Progress = lambda done, total: None,
) -> tuple[SampleIndex, dict[int, str]]:
    """Tokenizes every sample and looks for every image.

    Returns the index, and by its place what is wrong with a sample that cannot be encoded, or of which an image is
    missing or outside `images_root`. Raises DataError where tokenizer and template do not go together.
    """
    check_tokenizer(template, tokenizer)
    image_token_id(tokenizer)
    measure = _Measure(template, tokenizer, system_prompt, None if images_root is None else images_root.resolve())
    rows: list[tuple[int, ...]] = []
    problems: dict[int, str] = {}
    for found in in_workers(measure, samples, _workers_for(len(samples)), progress):
        if isinstance(found, str):
            problems[len(rows)] = found
        rows.append(_NOTHING if isinstance(found, str) else found)
    return SampleIndex.from_rows(rows), problems


@dataclass(frozen=True)
class _Measure:
    """What SampleIndex has of a sample, or what is wrong with it."""

    template: Template
    tokenizer: PreTrainedTokenizerBase
    system_prompt: str | None
    root: Path | None

    def __call__(self, sample: Sample) -> tuple[int, ...] | str:
        problem = _image_problem(sample, self.root)
        return problem or measured(sample, self.template, self.tokenizer, self.system_prompt)


def measured(
    sample: Sample, template: Template, tokenizer: PreTrainedTokenizerBase, system_prompt: str | None
) -> tuple[int, ...] | str:
    """What SampleIndex has of a sample, see `indexed`, or why it cannot be encoded."""
    try:
        return indexed(sample, encode(sample, template, tokenizer, system_prompt), tokenizer)
    except DataError as problem:
        return str(problem)


def indexed(sample: Sample, encoded: Encoded, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """What SampleIndex has of an encoded sample: its `COUNTS`, then the places of its images."""
    places: list[int] = []
    if sample.images:
        places = np.flatnonzero(np.array(encoded.token_ids) == image_token_id(tokenizer)).tolist()
    text_tokens = len(encoded.token_ids) - len(places)
    return text_tokens, len(places), count_supervised(encoded.labels), int(lacks_guide(sample)), *places


def _workers_for(samples: int) -> int:
    """Processes that measure so many samples: none where they would start for longer than they save."""
    return min(_MOST_WORKERS, len(os.sched_getaffinity(0)), samples // _SAMPLES_WORTH_A_WORKER)


def _image_problem(sample: Sample, root: Path | None) -> str | None:
    for picture in sample.images:
        if isinstance(picture, Member):
            continue
        if root is None:
            return f"image {shown_path(picture)}: data.images is not set"
        if isinstance(picture, EmbeddedImage):
            continue
        try:
            file = resolve_image(root, picture)
        except DataError:
            return f"image {shown_path(picture)}: outside {root}"
        # os.path, because pathlib raises on some paths (too long, no permission) where os.path says no.
        if not os.path.isfile(file):
            return f"image {shown_path(picture)}: no such file in {root}"
    return None


def listed(entries: list[str], total: int, problem: str, remedy: str) -> str:
    """One sentence about records that share a problem: their number, the first ten and what to do."""
    first = "; ".join(entries[:SHOWN_RECORDS])
    more = f"; and {len(entries) - SHOWN_RECORDS} more" if len(entries) > SHOWN_RECORDS else ""
    return f"{len(entries)} of {total} records {problem}: {first}{more}. Remedy: {remedy}"
