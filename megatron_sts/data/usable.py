"""Writes the records of a data file that can be trained on to a file of their own."""

from pathlib import Path

import numpy as np

from megatron_sts.errors import DataError
from megatron_sts.records import RecordPlaces


def check_can_be_written(data: Path, output: Path) -> None:
    """Raises DataError where `write_records` would: before any work is done."""
    if data.is_dir():
        raise DataError(f"{data}: is a directory of shards; records are written from a .json or a .jsonl file")
    if output.suffix != data.suffix:
        raise DataError(f"{output}: found the suffix {output.suffix!r}; end it in {data.suffix!r} as {data.name} does")
    if output.exists():
        raise DataError(f"{output}: exists already; remove it or choose another name")
    if not output.parent.is_dir():
        raise DataError(f"{output.parent}: no such folder; make it or choose another")


def write_records(places: RecordPlaces, numbers: np.ndarray, output: Path) -> None:
    """Write the records of those numbers, byte for byte and in order; the file appears when it is whole.

    Raises DataError where it cannot be written, or `places` lie in shards.
    """
    check_can_be_written(places.source, output)
    begin, between, end = (b"", b"\n", b"\n") if output.suffix == ".jsonl" else (b"[\n", b",\n", b"\n]\n")
    partial = output.with_name(f"{output.name}.partial")
    (data,) = places.files
    try:
        with partial.open("wb") as file:
            file.write(begin)
            for position, number in enumerate(numbers.tolist()):
                _, offset, size = places.records[number].tolist()
                file.write((between if position else b"") + data.read(offset, size).strip())
            file.write(end)
        partial.rename(output)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise DataError(f"{output}: cannot be written ({error}); choose a place with room for it") from error
