"""Reads conversations in LLaVA's json format, and says of every bad record what is wrong with it."""

import posixpath
from pathlib import Path
from typing import Any

from megatron_sts.data.sample import IMAGE_TOKEN, Role, Sample, Turn
from megatron_sts.errors import DataError
from megatron_sts.records import read_records

ROLES: dict[str, Role] = {"human": "human", "user": "human", "gpt": "assistant", "assistant": "assistant"}
SHOWN_PROBLEMS = 10


class _RecordError(Exception):
    """A record's first problem: the field, what was found, what to do."""


def read_llava_json(path: Path | str) -> list[Sample]:
    """Every record of a `.json` file (one list) or a `.jsonl` file (one record a line).

    Raises:
        DataError: the file cannot be read, or some records are bad. All records are looked at; the message
            lists the first ten bad ones and their number.
    """
    records = read_records(Path(path))
    samples: list[Sample] = []
    problems: list[str] = []
    for number, record in enumerate(records):
        try:
            samples.append(_sample(number, record))
        except _RecordError as problem:
            problems.append(f"  {_name(number, record)}: {problem}")
    if problems:
        shown = problems[:SHOWN_PROBLEMS]
        more = f" (the first {len(shown)})" if len(problems) > len(shown) else ""
        raise DataError(f"{path}: {len(problems)} of {len(records)} records cannot be used{more}:\n" + "\n".join(shown))
    return samples


def _name(number: int, record: Any) -> str:
    if isinstance(record, dict) and isinstance(record.get("id"), str | int):
        return f"record {number} (id {record['id']!r})"
    return f"record {number}"


def _sample(number: int, record: Any) -> Sample:
    if not isinstance(record, dict):
        raise _RecordError(f"found a {type(record).__name__}; a record is an object with 'conversations'")
    images = _images(record.get("image"))
    turns = _turns(record.get("conversations"))
    marks = sum(turn.text.count(IMAGE_TOKEN) for turn in turns if turn.role == "human")
    if marks != len(images):
        raise _RecordError(
            f"conversations: found {marks} {IMAGE_TOKEN} in the human turns and {len(images)} in 'image'; "
            f"write one {IMAGE_TOKEN} for each image"
        )
    identifier = record.get("id")
    if identifier is not None and not isinstance(identifier, str | int):
        raise _RecordError(f"id: found {identifier!r}; give a string or a number, or leave it out")
    return Sample(str(number if identifier is None else identifier), turns, images)


def _images(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    paths = value if isinstance(value, list) else [value]
    for path in paths:
        if not isinstance(path, str) or not path or "\0" in path:
            raise _RecordError(f"image: found {path!r}; give a path, a list of paths, or leave the field out")
        if path.startswith(("/", "\\")) or posixpath.normpath(path).split("/")[0] == "..":
            raise _RecordError(
                f"image: found {path!r}, which leaves the image folder; give a path relative to that folder"
            )
    return tuple(paths)


def _turns(value: Any) -> tuple[Turn, ...]:
    if not isinstance(value, list) or not value:
        found = "nothing" if value is None else repr(value)[:80]
        raise _RecordError(f"conversations: found {found}; give a list of turns, human first")
    turns = tuple(_turn(number, entry) for number, entry in enumerate(value))
    for number, turn in enumerate(turns):
        expected = "human" if number % 2 == 0 else "assistant"
        if turn.role != expected:
            raise _RecordError(
                f"conversations[{number}].from: found {value[number]['from']!r} where a {expected} turn "
                "belongs; let human and gpt alternate, human first"
            )
    if turns[-1].role == "human":
        raise _RecordError(
            f"conversations[{len(turns) - 1}]: found a human turn without an answer; add the answer or remove the turn"
        )
    return turns


def _turn(number: int, entry: Any) -> Turn:
    field = f"conversations[{number}]"
    if not isinstance(entry, dict):
        raise _RecordError(f"{field}: found {repr(entry)[:80]}; a turn is an object with 'from' and 'value'")
    role = ROLES.get(entry["from"]) if isinstance(entry.get("from"), str) else None
    if role is None:
        raise _RecordError(f"{field}.from: found {entry.get('from')!r}; use 'human' or 'gpt'")
    text = entry.get("value")
    if not isinstance(text, str):
        raise _RecordError(f"{field}.value: found {repr(text)[:80]}; give the turn's text")
    if role == "assistant" and not text.strip():
        raise _RecordError(f"{field}.value: found an empty answer; write it or remove it and its question")
    if role == "assistant" and IMAGE_TOKEN in text:
        raise _RecordError(f"{field}.value: found {IMAGE_TOKEN} in an answer; only human turns may hold images")
    return Turn(role, text)
