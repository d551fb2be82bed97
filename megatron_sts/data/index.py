"""How long every sample is, found once before training, together with everything that is wrong with the data.

Every rank computes a step's padded length from these numbers, also those that load no text.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from megatron_sts.data.encode import IGNORED_LABEL, encode
from megatron_sts.data.images import resolve_image
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


def build_index(
    samples: Sequence[Sample],
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    system_prompt: str | None,
    images_root: Path | None,
    visual_tokens: int,
    max_tokens: int,
    progress: Progress | None = None,
) -> SampleIndex:
    """Measures and checks every sample; see `measure_samples` and `check_lengths` for what is refused."""
    index = measure_samples(samples, template, tokenizer, system_prompt, images_root, progress)
    check_lengths(index, samples, visual_tokens, max_tokens)
    return index


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
        # The first token has no position before it that could predict it.
        supervised[number] = sum(label != IGNORED_LABEL for label in encoded.labels[1:])
        if supervised[number] == 0:
            silent.append(repr(sample.id))
        if progress is not None:
            progress(number + 1, len(samples))

    problems = []
    if bad_images:
        remedy = "set data.images to the folder that holds them, add the files, or remove the records"
        problems.append(_listed(bad_images, len(samples), "name images that cannot be read", remedy))
    if silent:
        remedy = f"with the template {template.name!r} nothing of them is learnt: remove the records"
        problems.append(_listed(silent, len(samples), "hold no supervised token", remedy))
    if problems:
        raise DataError("\n".join(problems))
    return SampleIndex(text_tokens, images, supervised)


def check_lengths(index: SampleIndex, samples: Sequence[Sample], visual_tokens: int, max_tokens: int) -> None:
    """Refuses samples longer than `max_tokens` when an image takes `visual_tokens` (after compression).

    Raises:
        DataError: lists the first ten, their number and the `max_tokens` that would do.
    """
    assert len(index) == len(samples)
    lengths = index.lengths(visual_tokens)
    numbers = np.flatnonzero(lengths > max_tokens).tolist()
    long = [f"{samples[number].id!r} ({lengths[number]} tokens)" for number in numbers]
    if long:
        remedy = (
            f"raise data.max_tokens to {lengths.max()} if the model's maximum_positions allow it, keep fewer "
            f"visual tokens than {visual_tokens} an image, or remove the records"
        )
        raise DataError(_listed(long, len(samples), f"are longer than data.max_tokens {max_tokens}", remedy))


def _image_problem(sample: Sample, root: Path | None) -> str | None:
    if sample.images and root is None:
        return f"{sample.images[0]}: data.images is not set"
    for path in sample.images:
        assert root is not None
        try:
            if not resolve_image(root, path).is_file():
                return f"{path}: no such file in {root}"
        except DataError:
            return f"{path}: outside {root}"
    return None


def _listed(entries: list[str], total: int, problem: str, remedy: str) -> str:
    shown = "; ".join(entries[:SHOWN_SAMPLES])
    more = f"; and {len(entries) - SHOWN_SAMPLES} more" if len(entries) > SHOWN_SAMPLES else ""
    return f"{len(entries)} of {total} samples {problem}: {shown}{more}. Remedy: {remedy}"
