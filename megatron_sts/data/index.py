"""How long every sample is, found once before training, together with everything that is wrong with the data.

Every rank computes a step's padded length from these numbers, also those that load no text.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from megatron_sts.data.encode import count_supervised, encode
from megatron_sts.data.pictures import resolve_image
from megatron_sts.data.sample import Sample
from megatron_sts.data.templates import Template
from megatron_sts.errors import DataError

SHOWN_SAMPLES = 10

Progress = Callable[[int, int], None]
"""Called with the number of samples done and their total."""


@dataclass(frozen=True, slots=True)
class SampleIndex:
    """Per sample, int32 [n]."""

    text_tokens: np.ndarray
    """Tokens without the `<image>` tokens."""
    images: np.ndarray
    supervised: np.ndarray
    """Tokens that carry a loss."""

    def __len__(self) -> int:
        return len(self.text_tokens)

    def of(self, indices: Sequence[int]) -> "SampleIndex":
        """The index of some of the samples, in the order asked for."""
        chosen = np.asarray(indices, dtype=np.int64)
        return SampleIndex(self.text_tokens[chosen], self.images[chosen], self.supervised[chosen])

    def lengths(self, visual_tokens: int) -> np.ndarray:
        """int64 [n]: positions each sample fills when an image takes `visual_tokens`."""
        return self.text_tokens.astype(np.int64) + self.images.astype(np.int64) * visual_tokens


def measure_samples(
    samples: Sequence[Sample],
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    system_prompt: str | None,
    images_root: Path | None,
    progress: Progress | None = None,
) -> SampleIndex:
    """Tokenizes every sample and looks for every image.

    Raises:
        DataError: samples name images that are missing or outside `images_root`, or hold no supervised token.
            Of each kind the first ten and the number are listed.
    """
    root = None if images_root is None else images_root.resolve()
    text_tokens = np.zeros(len(samples), dtype=np.int32)
    images = np.zeros(len(samples), dtype=np.int32)
    supervised = np.zeros(len(samples), dtype=np.int32)
    bad_images: list[str] = []
    silent: list[str] = []
    for number, sample in enumerate(samples):
        problem = _image_problem(sample, root)
        if problem is not None:
            bad_images.append(f"{sample.id!r} ({problem})")
        encoded = encode(sample, template, tokenizer, system_prompt)
        images[number] = len(sample.images)
        text_tokens[number] = len(encoded.token_ids) - len(sample.images)
        supervised[number] = count_supervised(encoded.labels)
        if supervised[number] == 0:
            silent.append(repr(sample.id))
        if progress is not None:
            progress(number + 1, len(samples))

    problems = []
    if bad_images:
        remedy = "set data.images to the folder that holds them, add the files, or remove the records"
        problems.append(listed(bad_images, len(samples), "name images that cannot be read", remedy))
    if silent:
        remedy = f"with the template {template.name!r} nothing of them is learnt: remove the records"
        problems.append(listed(silent, len(samples), "hold no supervised token", remedy))
    if problems:
        raise DataError("\n".join(problems))
    return SampleIndex(text_tokens, images, supervised)


def _image_problem(sample: Sample, root: Path | None) -> str | None:
    for path in sample.images:
        if root is None:
            return f"{path}: data.images is not set"
        try:
            file = resolve_image(root, path)
        except DataError:
            return f"{path}: outside {root}"
        # os.path, because pathlib raises on some paths (too long, no permission) where os.path says no.
        if not os.path.isfile(file):
            return f"{path}: no such file in {root}"
    return None


def listed(entries: list[str], total: int, problem: str, remedy: str) -> str:
    """One sentence about samples that share a problem: their number, the first ten and what to do."""
    shown = "; ".join(entries[:SHOWN_SAMPLES])
    more = f"; and {len(entries) - SHOWN_SAMPLES} more" if len(entries) > SHOWN_SAMPLES else ""
    return f"{len(entries)} of {total} samples {problem}: {shown}{more}. Remedy: {remedy}"
