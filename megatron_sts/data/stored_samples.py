"""The conversations of a data file or of shards, each read when it is asked for."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_sts.data.llava_json import RecordError, sample_of_record
from megatron_sts.data.picked_samples import PickedSamples
from megatron_sts.data.sample import Sample
from megatron_sts.data.unread_keys import UnreadKeys
from megatron_sts.data.workers import Progress
from megatron_sts.errors import DataError, shown
from megatron_sts.records import RecordPlaces, find_records
from megatron_sts.records.record_places import Members

_SHOWN_PROBLEMS = 10
_REMEDY = "mend them; `tools/prepare_data.py check {} --images DIR --usable FILE` writes the others to a file"


@dataclass(frozen=True)
class StoredSamples(PickedSamples):
    """Conversations that lie in files. numbers: of the records that they are."""

    places: RecordPlaces

    @classmethod
    def all_of(cls, places: RecordPlaces) -> "StoredSamples":
        """One sample for each record. Contract: only good ones are asked for; `scan_records` tells which."""
        return cls(np.arange(len(places)), places)

    def sample(self, number: int) -> Sample:
        """The conversation of a record, read now."""
        return sample_of_record(number, *self.places.read(number))


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A record that cannot be used. number: 0-based, in the data. id: as written; None where it has none."""

    number: int
    id: str | None
    problem: str

    def __str__(self) -> str:
        return f"record {self.number}{'' if self.id is None else f' (id {shown(self.id)})'}: {self.problem}"


def read_samples(source: Path | str, progress: Progress = lambda done, total: None) -> StoredSamples:
    """Every record of a `.json` file (one list), a `.jsonl` file (one record a line) or a directory of shards.

    progress: told how many megabytes were read.

    Raises:
        DataError: the data cannot be read, or some records are bad. All records are looked at; the message lists the
            first ten bad ones and their number.
    """
    samples, bad = scan_records(source, progress)
    if bad:
        shown = "\n".join(f"  {record}" for record in bad[:_SHOWN_PROBLEMS])
        more = f" (the first {_SHOWN_PROBLEMS})" if len(bad) > _SHOWN_PROBLEMS else ""
        remedy = "" if Path(source).is_dir() else f"\n{_REMEDY.format(source)}"
        raise DataError(
            f"{source}: {len(bad)} of {len(samples) + len(bad)} records cannot be used{more}:\n{shown}{remedy}"
        )
    return samples


def scan_records(
    source: Path | str, progress: Progress = lambda done, total: None, unread: UnreadKeys | None = None
) -> tuple[StoredSamples, list[BadRecord]]:
    """The good records of the data, and the bad ones with what is wrong; DataError where it cannot be read.

    unread: takes in the keys of the good ones.
    """
    bad: list[BadRecord] = []

    def look(number: int, record: Any, members: Members) -> None:
        try:
            sample = sample_of_record(number, record, members)
            if unread is not None:
                unread.look(sample.id, record)
        except RecordError as problem:
            name = record.get("id") if isinstance(record, dict) else None
            bad.append(BadRecord(number, str(name) if isinstance(name, str | int) else None, str(problem)))

    places = find_records(Path(source), look, progress)
    is_good = np.ones(len(places), dtype=bool)
    is_good[[record.number for record in bad]] = False
    return StoredSamples(np.flatnonzero(is_good), places), bad
