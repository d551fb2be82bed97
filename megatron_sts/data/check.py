"""What is in a data file and its image folder, and all that is wrong with it, without training."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from megatron_sts.data.check_lengths import TextSettings, describe_lengths, spread
from megatron_sts.data.embedded_image import EmbeddedImage
from megatron_sts.data.encode import check_tokenizer, image_token_id
from megatron_sts.data.pictures import check_is_file, find_picture, read_picture
from megatron_sts.data.sample import Sample
from megatron_sts.data.stored_samples import scan_records
from megatron_sts.data.unread_keys import UnreadKeys
from megatron_sts.data.usable import check_can_be_written, write_records
from megatron_sts.data.workers import StartProgress, in_workers, untold
from megatron_sts.errors import DataError, shown_path
from megatron_sts.records import Member


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
    needs_folder: bool

    def __call__(self, picture: "str | Member | _Embedded") -> str | None:
        """What is wrong with a picture."""
        if self.needs_folder and self.root is None and not isinstance(picture, Member):
            return "data.images is not set; set it to the image folder, and to any folder where no image lies in a file"
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
    needs_folder: bool = False,
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
        needs_folder: images of a json file cannot be used without an image folder, as in training.

    Returns:
        Plain values, fit for json: `data`, `records`, `usable`, `text_only`, `turns`, `images`, `lengths` (None
        without `text`), `unread_keys`, `bad` (the number of records that cannot be used because they, or an image of
        theirs, cannot be read), and under `problems` by kind what is wrong, each with the record's id. A record is
        usable where training would take it.

    Raises:
        DataError: the file cannot be read or holds no record, or `images` is no folder, or
            `usable_file` cannot be written or is there already; the tokenizer does not go with the template, or has no
            `<image>`.
    """
    if text is not None:
        check_tokenizer(text.template, text.tokenizer)
        image_token_id(text.tokenizer)
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
    looks = images is not None or data.is_dir() or needs_folder
    seen = [picture for picture in pictures if looks or isinstance(picture, _Embedded)]
    bad_samples: set[int] = set()
    broken: dict[str | Member | _Embedded, str] = {}
    if seen:
        check = _ImageCheck(samples, None if images is None else images.resolve(), pads, decodes, needs_folder)
        found = in_workers(check, seen, workers, progress("images"))
        broken = {picture: problem for picture, problem in zip(seen, found, strict=True) if problem is not None}
    problems["images"] = []
    for number, (name, _, named) in enumerate(outlines):
        for picture in named:
            if picture in broken:
                problems["images"].append({"id": name, "image": shown_path(picture), "problem": broken[picture]})
                bad_samples.add(number)

    lengths = None
    unusable = bad_samples | set(silent)
    if text is not None and samples:
        found_lengths = list(in_workers(text.measure, samples, workers, progress("records")))
        lengths, not_trained_on = describe_lengths(samples, found_lengths, text, problems)
        unusable |= not_trained_on
        bad_samples |= {number for number, found in enumerate(found_lengths) if isinstance(found, str)}
    if usable_file is not None:
        write_records(samples.places, np.delete(samples.numbers, sorted(unusable)), usable_file)
    return {
        "data": str(data),
        "records": len(samples) + len(bad),
        "usable": len(samples) - len(unusable),
        "bad": len(bad) + len(bad_samples),
        "text_only": sum(not named for _, _, named in outlines),
        "turns": spread([turns for _, turns, _ in outlines]),
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
