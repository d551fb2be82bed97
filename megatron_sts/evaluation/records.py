"""Reads json and json lines, and says of every bad record where it stands and what is wrong with it."""

import json
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from megatron_sts.data.sample import RecordError
from megatron_sts.errors import DataError, shown

_SHOWN_PROBLEMS = 10

Made = TypeVar("Made")


@dataclass(frozen=True, slots=True)
class Record:
    """A record as it was read, and where: `line 3` of a file with one a line, else `record 2`."""

    place: str
    value: Any


def read_json(path: Path) -> Any:
    """What a json file holds; DataError where it cannot be read."""
    text = _read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _not_json(path, error) from error


def read_records(path: Path) -> list[Record]:
    """The records of a `.jsonl` file (one a line) or of a `.json` file: one list, or one a line, as POPE has them.

    Raises:
        DataError: the file cannot be read, is not json, or holds no list of records.
    """
    text = _read_text(path)
    if path.suffix == ".jsonl":
        return _of_lines(path, text)
    try:
        records = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip().startswith("{"):
            return _of_lines(path, text)
        raise _not_json(path, error) from error
    except (ValueError, RecursionError) as error:
        raise _not_json(path, error) from error
    if isinstance(records, dict) and "\n" not in text.strip():
        return _of_lines(path, text)
    if not isinstance(records, list) or not records:
        raise _no_records(path)
    return [Record(f"record {number}", record) for number, record in enumerate(records)]


def make_all(
    path: Path, records: Iterable[Record], make: Callable[[Any], Made], identity: Callable[[Made], Hashable]
) -> list[Made]:
    """What `make` makes of every record.

    Args:
        path: the file, for the message.
        make: raises RecordError for a bad record.
        identity: what no two of them may share.

    Raises:
        DataError: some records are bad or share an identity; the message lists the first ten.
    """
    made, problems, total = [], [], 0
    seen: Counter[Hashable] = Counter()
    for record in records:
        total += 1
        try:
            one = make(record.value)
            seen[identity(one)] += 1
            if seen[identity(one)] > 1:
                raise RecordError(
                    f"question_id: {shown(identity(one))} stands in an earlier record too; make them differ"
                )
        except RecordError as problem:
            problems.append(f"  {record.place}: {problem}")
        else:
            made.append(one)
    if problems:
        more = f" (the first {_SHOWN_PROBLEMS})" if len(problems) > _SHOWN_PROBLEMS else ""
        raise DataError(
            f"{path}: {len(problems)} of {total} questions cannot be used{more}:\n"
            + "\n".join(problems[:_SHOWN_PROBLEMS])
        )
    return made


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); give a readable .json or .jsonl file") from error


def _of_lines(path: Path, text: str) -> list[Record]:
    records = []
    # str.splitlines would also cut at characters such as U+2028, which json allows inside a string.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                records.append(Record(f"line {number}", json.loads(line)))
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}: line {number} is not valid json ({error}); mend that line") from error
    if not records:
        raise _no_records(path)
    return records


def _not_json(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: is not valid json ({error}); write one list (.json) or one record a line (.jsonl)")


def _no_records(path: Path) -> DataError:
    return DataError(f"{path}: holds no list of questions; give records with question_id, text and answer")
