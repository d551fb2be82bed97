"""How long the records of a data file are, in the part of a check that counts tokens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from megatron_sts.data.index import SampleIndex, measured
from megatron_sts.data.lengths import TooLong, fit_lengths
from megatron_sts.data.sample import Sample
from megatron_sts.data.stored_samples import StoredSamples
from megatron_sts.data.templates import Template


@dataclass(frozen=True)
class TextSettings:
    """How the texts of the records are measured; the fields are those of a stage's recipe.

    visual_tokens: of an image, before compression. kept_tokens: after it. describe: what the report has of a stage's
    steps, by the index of the samples that it trains on; None: there is no stage. image_token_added: the tokenizer's
    `<image>` was added for the measuring.
    """

    tokenizer: PreTrainedTokenizerBase
    template: Template
    system_prompt: str | None
    visual_tokens: int
    kept_tokens: int
    max_tokens: int
    too_long: TooLong
    describe: Callable[[SampleIndex], dict[str, Any]] | None = None
    image_token_added: bool = False

    def measure(self, sample: Sample) -> tuple[int, ...] | str:
        """What SampleIndex has of a sample, or why it cannot be encoded."""
        return measured(sample, self.template, self.tokenizer, self.system_prompt)


def describe_lengths(
    samples: StoredSamples,
    of_samples: Sequence[tuple[int, ...] | str],
    text: TextSettings,
    problems: dict[str, list[dict[str, Any]]],
) -> tuple[dict[str, Any] | None, set[int]]:
    """The lengths of the samples that can be encoded, and the numbers of those that are not trained on.

    of_samples: what `TextSettings.measure` found of each. problems: by kind; more are added.
    """
    refused = [(number, found) for number, found in enumerate(of_samples) if isinstance(found, str)]
    problems["cannot_be_encoded"] = [{"id": samples[number].id, "problem": found} for number, found in refused]
    counted = [(number, found) for number, found in enumerate(of_samples) if not isinstance(found, str)]
    silent = [number for number, (_, _, supervised, *_) in counted if supervised == 0]
    problems["without_supervision"] = [{"id": samples[number].id} for number in silent]
    out = {number for number, _ in refused} | set(silent)
    if not counted:
        return None, out

    numbers = [number for number, _ in counted]
    index = SampleIndex.from_rows(found for _, found in counted)
    before, after = index.lengths(text.visual_tokens), index.lengths(text.kept_tokens)
    long = np.flatnonzero(after > text.max_tokens).tolist()
    problems["too_long"] = [{"id": samples[numbers[position]].id, "tokens": int(after[position])} for position in long]
    encodable = replace(samples, numbers=samples.numbers[numbers])
    learnt = np.flatnonzero(index.supervised)
    # Training stops at them where they are an error; here they are told, and what is without them.
    policy: TooLong = "set_aside" if text.too_long == "error" else text.too_long
    arguments = (text.template, text.tokenizer, text.system_prompt)
    fitted = fit_lengths(index, encodable, *arguments, text.kept_tokens, text.max_tokens, policy, learnt)
    out |= {numbers[position] for position in fitted.set_aside}
    described = {
        "template": text.template.name,
        "image_token_added": text.image_token_added,
        "text": spread(index.text_tokens),
        "supervised": spread(index.supervised),
        "visual_tokens": text.visual_tokens,
        "before_compression": spread(before),
        "kept_tokens": text.kept_tokens,
        "after_compression": spread(after),
        "max_tokens": text.max_tokens,
        "too_long": {
            "policy": text.too_long,
            "records": len(long),
            "cut": len(fitted.samples.limits),
            "without_last_turns": len(fitted.samples.turns),
            "set_aside": len(fitted.set_aside),
        },
        "training": text.describe(fitted.index) if text.describe is not None and len(fitted.index) else None,
    }
    return described, out


def spread(values: Sequence[int] | np.ndarray) -> dict[str, float] | None:
    """Mean, median, 99th percentile and maximum; None of nothing."""
    if not len(values):
        return None
    p50, p99 = np.percentile(values, [50, 99], method="higher")
    return {"mean": round(float(np.mean(values)), 1), "p50": int(p50), "p99": int(p99), "max": int(np.max(values))}
