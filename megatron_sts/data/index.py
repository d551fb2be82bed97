"""How long every sample is, found once before training, together with everything that is wrong with the data.

Every rank computes a step's padded length from these numbers, also those that load no text.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from megatron_sts.data.encode import count_supervised, encode, lacks_guide
from megatron_sts.data.pictures import resolve_image
from megatron_sts.data.sample import Sample
from megatron_sts.data.templates import Template
from megatron_sts.data.workers import Progress, in_workers
from megatron_sts.errors import DataError
from megatron_sts.records import Member

SHOWN_SAMPLES = 10

_SAMPLES_WORTH_A_WORKER = 4096
_MOST_WORKERS = 16


@dataclass(frozen=True, slots=True)
class SampleIndex:
    """Per sample, int32 [n]."""

    text_tokens: np.ndarray
    """Tokens without the `<image>` tokens."""
    images: np.ndarray
    supervised: np.ndarray
    """Tokens that carry a loss."""
    lacks_guide: np.ndarray
    """1 where there are images, but no human words to choose their visual tokens by; else 0."""

    def __len__(self) -> int:
        return len(self.text_tokens)

    def of(self, indices: Sequence[int] | np.ndarray) -> "SampleIndex":
        """The index of some of the samples, in the order asked for."""
        chosen = np.asarray(indices, dtype=np.int64)
        return SampleIndex(*(getattr(self, one.name)[chosen] for one in fields(self)))

    def lengths(self, visual_tokens: int) -> np.ndarray:
        """int64 [n]: positions each sample fills when an image takes `visual_tokens`."""
        return self.text_tokens.astype(np.int64) + self.images.astype(np.int64) * visual_tokens


def measure_samples(
    samples: Sequence[Sample],
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    system_prompt: str | None,
    images_root: Path | None,
    progress: Progress = lambda done, total: None,
) -> SampleIndex:
    """Tokenizes every sample and looks for every image.

    Raises:
        DataError: samples name images that are missing or outside `images_root`, or hold no supervised token.
            Of each kind the first ten and the number are listed.
    """
    measure = _Measure(template, tokenizer, system_prompt, None if images_root is None else images_root.resolve())
    counts = np.zeros((len(samples), len(fields(SampleIndex))), dtype=np.int32)
    bad_images: list[str] = []
    for number, (found, problem) in enumerate(in_workers(measure, samples, _workers_for(len(samples)), progress)):
        if isinstance(found, str):
            raise DataError(found)
        counts[number] = found
        if problem is not None:
            bad_images.append(problem)
    index = SampleIndex(*counts.T.copy())
    silent = [repr(samples[number].id) for number in np.flatnonzero(index.supervised == 0).tolist()]
    problems = []
    if bad_images:
        remedy = "set data.images to the folder that holds them, add the files, or remove the records"
        problems.append(listed(bad_images, len(samples), "name images that cannot be read", remedy))
    if silent:
        remedy = f"with the template {template.name!r} nothing of them is learnt: remove the records"
        problems.append(listed(silent, len(samples), "hold no supervised token", remedy))
    if problems:
        raise DataError("\n".join(problems))
    return index


@dataclass(frozen=True)
class _Measure:
    """(what SampleIndex has of a sample or why it cannot be encoded, what is wrong with its images)."""

    template: Template
    tokenizer: PreTrainedTokenizerBase
    system_prompt: str | None
    root: Path | None

    def __call__(self, sample: Sample) -> tuple[tuple[int, ...] | str, str | None]:
        problem = _image_problem(sample, self.root)
        found = measured(sample, self.template, self.tokenizer, self.system_prompt)
        return found, None if problem is None else f"{sample.id!r} ({problem})"


def measured(
    sample: Sample, template: Template, tokenizer: PreTrainedTokenizerBase, system_prompt: str | None
) -> tuple[int, ...] | str:
    """What SampleIndex has of a sample, or why it cannot be encoded."""
    try:
        encoded = encode(sample, template, tokenizer, system_prompt)
    except DataError as problem:
        return str(problem)
    images = len(sample.images)
    text_tokens = len(encoded.token_ids) - images
    return text_tokens, images, count_supervised(encoded.labels), int(lacks_guide(sample))


def _workers_for(samples: int) -> int:
    """Processes that measure so many samples: none where they would start for longer than they save."""
    return min(_MOST_WORKERS, len(os.sched_getaffinity(0)), samples // _SAMPLES_WORTH_A_WORKER)


def _image_problem(sample: Sample, root: Path | None) -> str | None:
    for picture in sample.images:
        if isinstance(picture, Member):
            continue
        if root is None:
            return f"{picture}: data.images is not set"
        try:
            file = resolve_image(root, picture)
        except DataError:
            return f"{picture}: outside {root}"
        # os.path, because pathlib raises on some paths (too long, no permission) where os.path says no.
        if not os.path.isfile(file):
            return f"{picture}: no such file in {root}"
    return None


def listed(entries: list[str], total: int, problem: str, remedy: str) -> str:
    """One sentence about samples that share a problem: their number, the first ten and what to do."""
    shown = "; ".join(entries[:SHOWN_SAMPLES])
    more = f"; and {len(entries) - SHOWN_SAMPLES} more" if len(entries) > SHOWN_SAMPLES else ""
    return f"{len(entries)} of {total} samples {problem}: {shown}{more}. Remedy: {remedy}"
