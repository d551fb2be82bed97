"""What is in a data file and its image folder, and all that is wrong with it, without training."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from megatron_sts.data.embedded_image import EmbeddedImage
from megatron_sts.data.index import SampleIndex, measured
from megatron_sts.data.lengths import TooLong, fit_lengths
from megatron_sts.data.pictures import check_is_file, find_picture, read_picture
from megatron_sts.data.sample import Sample
from megatron_sts.data.stored_samples import scan_records
from megatron_sts.data.templates import Template
from megatron_sts.data.unread_keys import UnreadKeys
from megatron_sts.data.usable import check_can_be_written, write_records
from megatron_sts.data.workers import StartProgress, in_workers, untold
from megatron_sts.errors import DataError, shown_path
from megatron_sts.records import Member


@dataclass(frozen=True)
class TextSettings:
    """How the texts of the records are measured; the fields are those of a stage's recipe.

    visual_tokens: of an image, before compression. kept_tokens: after it. describe: what the report has of a stage's
    steps, by the index of the samples that it trains on; None: there is no stage.
    """

    tokenizer: PreTrainedTokenizerBase
    template: Template
    system_prompt: str | None
    visual_tokens: int
    kept_tokens: int
    max_tokens: int
    too_long: TooLong
    describe: Callable[[SampleIndex], dict[str, Any]] | None = None

    def measure(self, sample: Sample) -> tuple[int, ...] | str:
        """What SampleIndex has of a sample, or why it cannot be encoded."""
        return measured(sample, self.template, self.tokenizer, self.system_prompt)


class _Embedded(NamedTuple):
    """A picture inside a record, in place of its bytes: of which sample, and which of its pictures."""

    sample: int
    number: int

    def __str__(self) -> str:
        return "inside the record"


def _outline(number: int, sample: Sample) -> tuple[str | Member | _Embedded, ...]:
    """The pictures of a sample, those inside the record without their bytes."""
    return tuple(
        _Embedded(number, place) if isinstance(picture, EmbeddedImage) else picture
        for place, picture in enumerate(sample.images)
    )


@dataclass(frozen=True)
class _ImageCheck:
    """Opens pictures, and decodes them where `decodes`. root: the folder of those that lie in no shard or record."""

    samples: Sequence[Sample]
    root: Path | None
    pads: bool
    decodes: bool

    def __call__(self, picture: "str | Member | _Embedded") -> str | None:
        """What is wrong with a picture."""
        try:
            if isinstance(picture, _Embedded):
                file = find_picture(self.root, self.samples[picture.sample].images[picture.number])
            else:
                file = find_picture(self.root, picture)
            if self.decodes:
                read_picture(file, pads=self.pads)
            else:
                check_is_file(file)
        except DataError as problem:
            return str(problem)
        return None


def check_data(
    data: Path,
    images: Path | None,
    text: TextSettings | None = None,
    pads: bool = False,
    decodes: bool = True,
    workers: int = 0,
    progress: StartProgress = untold,
    usable_file: Path | None = None,
) -> dict[str, Any]:
    """Looks at every record and every picture that is named.

    Args:
        data: a data file or a directory of shards.
        images: the image folder; None: no picture is looked at, but for those in shards.
        text: how lengths are counted; None: they are not.
        pads: pictures will be padded to a square, which limits their size further.
        decodes: whether pictures are decoded; otherwise only their files are looked for.
        workers: processes that do it; 0: this one.
        progress: given what is counted, returns what is told how far it is.
        usable_file: where the usable records are written, as they are; None: nowhere.

    Returns:
        Plain values, fit for json: `data`, `records`, `usable`, `text_only`, `turns`, `images`, `lengths` (None
        without `text`), and under `problems` by kind what is wrong, each with the record's id. A record is usable
        where training would take it.

    Raises:
        DataError: the file cannot be read or holds no record, or `images` is no folder, or
            `usable_file` cannot be written or is there already.
    """
    if usable_file is not None:
        check_can_be_written(data, usable_file)
    if images is not None and not images.is_dir():
        raise DataError(f"{images}: is no folder; give the folder of the images")
    unread = UnreadKeys()
    samples, bad = scan_records(data, progress("MB read"), unread)
    problems: dict[str, list[dict[str, Any]]] = {
        "bad_records": [{"record": one.number, "id": one.id, "problem": one.problem} for one in bad]
    }
    # Every sample is read once; what is kept of it is short.
    outlines, silent = [], []
    for number, sample in enumerate(samples):
        outlines.append((sample.id, len(sample.turns), _outline(number, sample)))
        if not sample.is_learnt:
            silent.append(number)
    problems["without_supervision"] = [{"id": outlines[number][0]} for number in silent]
    repeated = [name for name, count in Counter(name for name, _, _ in outlines).items() if count > 1]
    problems["repeated_ids"] = [{"id": name} for name in repeated]

    pictures = list(dict.fromkeys(picture for _, _, named in outlines for picture in named))
    looks = images is not None or data.is_dir()
    seen = [picture for picture in pictures if looks or isinstance(picture, _Embedded)]
    unusable = set(silent)
    broken: dict[str | Member | _Embedded, str] = {}
    if seen:
        check = _ImageCheck(samples, None if images is None else images.resolve(), pads, decodes)
        found = in_workers(check, seen, workers, progress("images"))
        broken = {picture: problem for picture, problem in zip(seen, found, strict=True) if problem is not None}
    problems["images"] = []
    for number, (name, _, named) in enumerate(outlines):
        for picture in named:
            if picture in broken:
                problems["images"].append({"id": name, "image": shown_path(picture), "problem": broken[picture]})
                unusable.add(number)

    lengths = None
    if text is not None and samples:
        found_lengths = list(in_workers(text.measure, samples, workers, progress("records")))
        lengths, too_long = _lengths(samples, found_lengths, text, problems)
        unusable |= too_long
    if usable_file is not None:
        write_records(samples.places, np.delete(samples.numbers, sorted(unusable)), usable_file)
    return {
        "data": str(data),
        "records": len(samples) + len(bad),
        "usable": len(samples) - len(unusable),
        "text_only": sum(not named for _, _, named in outlines),
        "turns": _spread([turns for _, turns, _ in outlines]),
        "images": {
            "named": sum(len(named) for _, _, named in outlines),
            "files": sum(not isinstance(picture, _Embedded) for picture in pictures),
            "embedded": sum(isinstance(picture, _Embedded) for picture in pictures),
            "bad_files": len(broken) if looks or seen else None,
            "most_in_a_record": max((len(named) for _, _, named in outlines), default=0),
        },
        "lengths": lengths,
        "unread_keys": [asdict(key) for key in unread.found()],
        "problems": problems,
    }


def _lengths(
    samples: Sequence[Sample],
    of_samples: Sequence[tuple[int, ...] | str],
    text: TextSettings,
    problems: dict[str, list[dict[str, Any]]],
) -> tuple[dict[str, Any] | None, set[int]]:
    """The lengths of the samples that can be encoded; problems are added, with the numbers of their samples."""
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
    encodable = [samples[number] for number in numbers]
    learnt = np.flatnonzero(index.supervised)
    # Training stops at them where they are an error; here they are told, and what is without them.
    policy: TooLong = "set_aside" if text.too_long == "error" else text.too_long
    arguments = (text.template, text.tokenizer, text.system_prompt)
    fitted = fit_lengths(index, encodable, *arguments, text.kept_tokens, text.max_tokens, policy, learnt)
    out |= {numbers[position] for position in fitted.set_aside}
    described = {
        "template": text.template.name,
        "text": _spread(index.text_tokens),
        "supervised": _spread(index.supervised),
        "visual_tokens": text.visual_tokens,
        "before_compression": _spread(before),
        "kept_tokens": text.kept_tokens,
        "after_compression": _spread(after),
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


def _spread(values: Sequence[int] | np.ndarray) -> dict[str, float] | None:
    if not len(values):
        return None
    p50, p99 = np.percentile(values, [50, 99], method="higher")
    return {"mean": round(float(np.mean(values)), 1), "p50": int(p50), "p99": int(p99), "max": int(np.max(values))}
