"""The places of all records of a data file or of shards: found in one pass, kept as a few arrays."""

import hashlib
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from megatron_sts.config.data_config import DATA_SUFFIXES
from megatron_sts.errors import DataError
from megatron_sts.records.json_file import parse_record, scan_json
from megatron_sts.records.shards import scan_shard, shard_files
from megatron_sts.records.stored_file import Member, StoredFile

Members = tuple[Member, ...] | None
"""The pictures of a record in a shard; None: it is of a json file, which holds none."""
Seen = Callable[[int, Any, Members], None]
"""Called with the number of a record, its value and its pictures."""

_RECORDS_BETWEEN_WORDS = 64
_MEGABYTE = 10**6
_ARRAYS = ("records", "pictures", "first_pictures")


@dataclass(frozen=True)
class RecordPlaces:
    """Where records lie. All arrays are int64.

    source: the data file or the directory. files: where the bytes are. records [n, 3]: number of the file, first byte,
    bytes. pictures [m, 2]: first byte and bytes of each, in the file of its record. first_pictures [n + 1]: the number
    of each record's first picture, and m.
    """

    source: Path
    files: tuple[StoredFile, ...] = field(repr=False)
    records: np.ndarray = field(repr=False)
    pictures: np.ndarray = field(repr=False)
    first_pictures: np.ndarray = field(repr=False)

    def __len__(self) -> int:
        return len(self.records)

    def read(self, number: int) -> tuple[Any, Members]:
        """The value of a record and its pictures. Raises DataError where the file has changed."""
        file_number, offset, size = self.records[number].tolist()
        file = self.files[file_number]
        members: Members = None
        if self.source.suffix not in DATA_SUFFIXES:
            first, last = self.first_pictures[number : number + 2].tolist()
            members = tuple(Member(file, *place) for place in self.pictures[first:last].tolist())
        where = f"{file.path}: record {number}"
        return parse_record(where, file.read(offset, size).decode("utf-8-sig")), members

    def arrays(self) -> dict[str, np.ndarray]:
        """What `from_arrays` makes the places of again, as long as `content_key` is the same."""
        return {name: getattr(self, name) for name in _ARRAYS}

    @classmethod
    def from_arrays(cls, source: Path, arrays: dict[str, np.ndarray]) -> "RecordPlaces":
        """The places that were found in `source` before. Raises KeyError or ValueError where the arrays are none."""
        records, pictures, first_pictures = (arrays[name] for name in _ARRAYS)
        shapes = (records.shape[1:], pictures.shape[1:], first_pictures.shape)
        kinds = {values.dtype for values in (records, pictures, first_pictures)}
        if shapes != ((3,), (2,), (len(records) + 1,)) or kinds != {np.dtype(np.int64)}:
            raise ValueError(f"arrays of shapes {shapes} are no places of records")
        return cls(source, tuple(_files(source)), records, pictures, first_pictures)


def find_records(
    source: Path,
    seen: Seen = lambda number, value, pictures: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> RecordPlaces:
    """Goes through a `.json` file (one list), a `.jsonl` file (one record a line) or a directory of shards once.

    progress: told now and then, and at the end, how many of how many megabytes were passed.
    Contract: training has at most one sample for each record, so a plan counts them without looking inside.
    Raises DataError where it cannot be read or holds no record; records are not looked into.
    """
    files = tuple(_files(source))
    *before, size_of_all = accumulate((file.size for file in files), initial=0)
    megabytes = -(-size_of_all // _MEGABYTE)
    records, pictures, first_pictures = array("q"), array("q"), array("q", [0])
    number = 0
    for value, place, members in _scan(source, files):
        seen(number, value, members)
        records.extend(place)
        for member in members or ():
            pictures.extend((member.offset, member.size))
        first_pictures.append(len(pictures) // 2)
        number += 1
        if number % _RECORDS_BETWEEN_WORDS == 0:
            of_file, offset, size = place
            progress((before[of_file] + offset + size) // _MEGABYTE, megabytes)
    if not number:
        raise DataError(f"{source}: holds no record; give data with at least one conversation")
    progress(megabytes, megabytes)
    return RecordPlaces(
        source,
        files,
        np.array(records, dtype=np.int64).reshape(-1, 3),
        np.array(pictures, dtype=np.int64).reshape(-1, 2),
        np.array(first_pictures, dtype=np.int64),
    )


def _scan(source: Path, files: tuple[StoredFile, ...]) -> Iterator[tuple[Any, tuple[int, int, int], Members]]:
    if source.suffix in DATA_SUFFIXES:
        for offset, size, value in scan_json(source):
            yield value, (0, offset, size), None
        return
    for number, file in enumerate(files):
        for record in scan_shard(file):
            members = tuple(Member(file, picture.offset, picture.size) for picture in record.pictures)
            yield record.value, (number, record.json.offset, record.json.size), members


def _files(source: Path) -> list[StoredFile]:
    if source.suffix in DATA_SUFFIXES:
        return [StoredFile.of(source)]
    if source.is_file():
        raise DataError(
            f"{source}: found the suffix {source.suffix!r}; give a .json or a .jsonl file, or a directory of shards"
        )
    return shard_files(source)


def content_key(source: Path) -> str:
    """A hash that changes with the records: of a file's content; of shards' names, sizes and times of change.

    Raises DataError where the data cannot be read.
    """
    files = _files(source)
    if source.suffix not in DATA_SUFFIXES:
        told = "\n".join(f"{file.path.name} {file.size} {file.changed_ns}" for file in files)
        return hashlib.sha256(told.encode()).hexdigest()
    try:
        with source.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{source}: cannot be read ({error}); give a readable data file") from error
