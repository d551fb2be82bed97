"""The samples that a stage trains on: all records of its data, less those that are set aside, each for its reason."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from megatron_sts.data.index import COUNTS, SampleIndex, listed, measure_samples
from megatron_sts.data.index_cache import MeasuredRecords, fingerprint, load_or_build
from megatron_sts.data.lengths import FittedSamples, TooLong, fit_lengths
from megatron_sts.data.stored_samples import BadRecord, StoredSamples, scan_records
from megatron_sts.data.templates import Template
from megatron_sts.data.unread_keys import UnreadKey, UnreadKeys
from megatron_sts.data.workers import StartProgress, untold
from megatron_sts.errors import DataError


@dataclass(frozen=True)
class PreparedSamples:
    """Samples that are trained on, and their index; the numbers of `samples` are those of their records.

    records: how many there are in the data. bad: those that cannot be read or encoded, or of which an image is missing.
    silent: the numbers of those of which nothing is learnt. too_long: the numbers of those that are set aside for it.
    unread: the keys of the records that nothing reads.
    """

    samples: FittedSamples
    index: SampleIndex
    records: int
    bad: tuple[BadRecord, ...]
    silent: tuple[int, ...]
    too_long: tuple[int, ...]
    unread: tuple[UnreadKey, ...] = ()

    def text(self, max_tokens: int) -> str:
        """What was set aside and shortened, as a remark; empty where nothing was."""
        counts = {
            "that cannot be used": len(self.bad),
            "without anything to learn": len(self.silent),
            f"longer than {max_tokens} tokens": len(self.too_long),
        }
        set_aside = [f"{count:,} {reason}" for reason, count in counts.items() if count]
        parts = [f"of {self.records:,} records, set aside {', '.join(set_aside)}"] if set_aside else []
        if self.samples.turns:
            parts.append(f"{len(self.samples.turns):,} without their last turns, to fit {max_tokens} tokens")
        if self.samples.limits:
            parts.append(f"{len(self.samples.limits):,} cut at {max_tokens} tokens")
        return f" ({'; '.join(parts)})" if parts else ""

    def digest(self) -> str:
        """The same on ranks that have the same samples of the same lengths in the same order."""
        found = hashlib.sha256(repr((self.samples.limits, self.samples.turns)).encode())
        found.update(self.samples.numbers.astype(np.int64).tobytes())
        for one in fields(self.index):
            found.update(np.ascontiguousarray(getattr(self.index, one.name)).tobytes())
        return found.hexdigest()


def allowed_bad_records(max_bad_records: float, records: int) -> int:
    """How many of so many records may be bad. max_bad_records: below 1 a share of them, else a number."""
    return int(max_bad_records * records) if max_bad_records < 1 else int(max_bad_records)


def prepare_samples(
    path: Path,
    source: Path,
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    system_prompt: str | None,
    images_root: Path | None,
    visual_tokens: int,
    max_tokens: int,
    too_long: TooLong,
    max_bad_records: float,
    check_count: Callable[[int], None] = lambda count: None,
    progress: StartProgress = untold,
) -> PreparedSamples:
    """The samples of `source`, a data file or a directory of shards, that are trained on, and their index: from the
    cache at `path`, or found and left there.

    Lengths are fitted each time, since `visual_tokens` and `max_tokens` are not part of the cache's key; a
    changed compression does not tokenize again.

    Args:
        check_count: given the number of records before they are measured; may raise.
        progress: given what is counted, returns what is told how far it is.

    Raises:
        DataError: the data cannot be read, more of its records are bad than `max_bad_records` allows, no sample is
            left; as `measure_samples` and `fit_lengths`.
    """
    arguments = (template, tokenizer, system_prompt)

    def measure() -> MeasuredRecords:
        unread = UnreadKeys()
        samples, bad = scan_records(source, progress("MB read"), unread)
        check_count(len(samples.places))
        measured, problems = measure_samples(samples, *arguments, images_root, progress("records measured"))
        bad += [BadRecord(int(samples.numbers[at]), samples[at].id, problem) for at, problem in problems.items()]
        bad.sort(key=lambda record: record.number)
        return MeasuredRecords(
            samples.places, _spread(measured, samples.numbers, len(samples.places)), tuple(bad), tuple(unread.found())
        )

    def is_usable(found: MeasuredRecords) -> bool:
        return len(found.bad) <= allowed_bad_records(max_bad_records, len(found.places))

    found = load_or_build(path, source, fingerprint(source, *arguments, images_root), measure, is_usable)
    records = len(found.places)
    check_count(records)
    if not is_usable(found):
        raise _too_many_bad(source, found, max_bad_records)
    is_good = np.ones(records, dtype=bool)
    is_good[[record.number for record in found.bad]] = False
    is_learnt = found.index.supervised > 0
    samples = StoredSamples.all_of(found.places)
    fitted = fit_lengths(
        found.index, samples, *arguments, visual_tokens, max_tokens, too_long, np.flatnonzero(is_good & is_learnt)
    )
    silent = tuple(np.flatnonzero(is_good & ~is_learnt).tolist())
    prepared = PreparedSamples(fitted.samples, fitted.index, records, found.bad, silent, fitted.set_aside, found.unread)
    if not len(prepared.samples):
        raise DataError(
            f"{source}: no sample is left to train on{prepared.text(max_tokens)}; raise data.max_tokens, or check the "
            "data with `tools/prepare_data.py check`"
        )
    return prepared


def _spread(index: SampleIndex, numbers: np.ndarray, records: int) -> SampleIndex:
    """The index of so many records, those of `numbers` as given, the others zeros."""
    if len(numbers) == records:
        return index
    counts = {name: np.zeros(records, dtype=np.int32) for name in COUNTS}
    for name, row in counts.items():
        row[numbers] = getattr(index, name)
    return SampleIndex(**counts, image_positions=index.image_positions)


def _too_many_bad(source: Path, found: MeasuredRecords, max_bad_records: float) -> DataError:
    records = len(found.places)
    allowed = allowed_bad_records(max_bad_records, records)
    remedy = (
        "fix or remove them (`tools/prepare_data.py check` names them all, and `--usable FILE` writes the others to a "
        "file), set data.images to the folder that holds the images, or raise data.max_bad_records, which is "
        f"{max_bad_records:g} and allows {allowed}"
    )
    return DataError(f"{source}: {listed([str(bad) for bad in found.bad], records, 'cannot be used', remedy)}")
