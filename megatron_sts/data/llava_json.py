"""Reads conversations in LLaVA's json format, and says of every bad record what is wrong with it."""

import posixpath
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_sts.data.sample import IMAGE_TOKEN, Role, Sample, Turn
from megatron_sts.errors import DataError
from megatron_sts.records import read_records

ROLES: dict[str, Role] = {"human": "human", "user": "human", "gpt": "assistant", "assistant": "assistant"}
SHOWN_PROBLEMS = 10


class RecordError(DataError):
    """A record's first problem: the field, what was found, what to do."""


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A record that cannot be used. number: 0-based, in the file. id: as written; None where it has none."""

    number: int
    id: str | None
    problem: str

    def __str__(self) -> str:
        return f"record {self.number}{'' if self.id is None else f' (id {self.id!r})'}: {self.problem}"


def read_llava_json(path: Path | str) -> list[Sample]:
    """Every record of a `.json` file (one list) or a `.jsonl` file (one record a line).

    Raises:
        DataError: the file cannot be read, or some records are bad. All records are looked at; the message
            lists the first ten bad ones and their number.
    """
    samples, bad = scan_llava_json(path)
    if bad:
        shown = "\n".join(f"  {record}" for record in bad[:SHOWN_PROBLEMS])
        more = f" (the first {SHOWN_PROBLEMS})" if len(bad) > SHOWN_PROBLEMS else ""
        raise DataError(f"{path}: {len(bad)} of {len(samples) + len(bad)} records cannot be used{more}:\n{shown}")
    return samples


def scan_llava_json(path: Path | str) -> tuple[list[Sample], list[BadRecord]]:
    """The good records of a file, and the bad ones with what is wrong; DataError where the file cannot be read."""
    samples: list[Sample] = []
    bad: list[BadRecord] = []
    for number, record in enumerate(read_records(Path(path))):
        try:
            samples.append(sample_of_record(number, record))
        except RecordError as problem:
            name = record.get("id") if isinstance(record, dict) else None
            bad.append(BadRecord(number, str(name) if isinstance(name, str | int) else None, str(problem)))
    return samples, bad


def sample_of_record(number: int, record: Any) -> Sample:
    """The conversation of one record, whose id is its `number` where it has none; RecordError if it is bad."""
    if not isinstance(record, dict):
        raise RecordError(f"found a {type(record).__name__}; a record is an object with 'conversations'")
    identifier = record.get("id")
    if identifier is not None and not isinstance(identifier, str | int):
        raise RecordError(f"id: found {identifier!r}; give a string or a number, or leave it out")
    field = "messages" if "messages" in record and "conversations" not in record else "conversations"
    entries = record.get(field)
    if not isinstance(entries, list) or not entries:
        found = "nothing" if entries is None else repr(entries)[:80]
        raise RecordError(f"{field}: found {found}; give a list of turns, human first")

    paths_in_parts: list[Any] = []
    turns = [_turn(f"{field}[{position}]", entry, paths_in_parts) for position, entry in enumerate(entries)]
    system = turns.pop(0)[1] if turns[0][0] == "system" else None
    conversation = _conversation(field, turns, first=0 if system is None else 1)
    images = _images(record, paths_in_parts)
    marks = sum(turn.text.count(IMAGE_TOKEN) for turn in conversation if turn.role == "human")
    if images and not marks:
        conversation = (Turn("human", IMAGE_TOKEN * len(images) + conversation[0].text), *conversation[1:])
    elif marks != len(images):
        raise RecordError(
            f"{field}: found {marks} {IMAGE_TOKEN} in the human turns and {len(images)} in 'image'; "
            f"write one {IMAGE_TOKEN} for each image, or none at all"
        )
    return Sample(str(number if identifier is None else identifier), conversation, images, system)


def _images(record: dict[str, Any], paths_in_parts: list[Any]) -> tuple[str, ...]:
    if record.get("image") is not None and record.get("images") is not None:
        raise RecordError("image: found both 'image' and 'images'; give one of the two")
    field = "images" if record.get("images") is not None else "image"
    value = record.get(field)
    paths = value if isinstance(value, list) else [value]
    if value is None:
        paths = paths_in_parts
    for path in paths:
        if not isinstance(path, str) or not path or "\0" in path:
            raise RecordError(f"{field}: found {path!r}; give a path, a list of paths, or leave the field out")
        if path.startswith(("/", "\\")) or posixpath.normpath(path).split("/")[0] == "..":
            raise RecordError(
                f"{field}: found {path!r}, which leaves the image folder; give a path relative to that folder"
            )
    return tuple(paths)


def _conversation(field: str, turns: list[tuple[str, str]], first: int) -> tuple[Turn, ...]:
    """The turns after the system prompt, the first of which is number `first` of the record."""
    conversation: list[Turn] = []
    for number, (name, text) in enumerate(turns):
        expected: Role = "assistant" if number % 2 else "human"
        if name == "system":
            raise RecordError(f"{field}[{first + number}]: found a system turn; it goes before all others, once")
        if ROLES[name] != expected:
            raise RecordError(
                f"{field}[{first + number}].from: found {name!r} where a {expected} turn belongs; "
                "let human and gpt alternate, human first"
            )
        conversation.append(Turn(expected, text))
    if not conversation:
        raise RecordError(f"{field}: found a system turn alone; add a question and its answer")
    if conversation[-1].role == "human":
        raise RecordError(
            f"{field}[{first + len(turns) - 1}]: found a human turn without an answer; add the answer or "
            "remove the turn"
        )
    return tuple(conversation)


def _turn(field: str, entry: Any, paths: list[Any]) -> tuple[str, str]:
    """Who speaks, as written, and the text; the paths of images in its parts are added to `paths`."""
    if not isinstance(entry, dict):
        raise RecordError(f"{field}: found {repr(entry)[:80]}; a turn is an object with 'from' and 'value'")
    speaker, content = ("role", "content") if "role" in entry and "from" not in entry else ("from", "value")
    name, text = entry.get(speaker), entry.get(content)
    if not isinstance(name, str) or name not in {*ROLES, "system"}:
        raise RecordError(f"{field}.{speaker}: found {name!r}; use 'human' or 'gpt', or 'system' in the first turn")
    if isinstance(text, list):
        text = "".join(_part(f"{field}.{content}[{number}]", part, paths) for number, part in enumerate(text))
    if not isinstance(text, str):
        raise RecordError(f"{field}.{content}: found {repr(text)[:80]}; give the turn's text")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise RecordError(f"{field}.{content}: found half of a surrogate pair, which is no character; mend the text")
    if ROLES.get(name) == "assistant" and not text.strip():
        raise RecordError(f"{field}.{content}: found an empty answer; write it or remove it and its question")
    if ROLES.get(name) != "human" and IMAGE_TOKEN in text:
        where = "a system prompt" if name == "system" else "an answer"
        raise RecordError(f"{field}.{content}: found {IMAGE_TOKEN} in {where}; only human turns may hold images")
    return name, text


def _part(field: str, part: Any, paths: list[Any]) -> str:
    """The text of a part of a message, as Hugging Face's chats have them."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    if kind != "image":
        raise RecordError(
            f"{field}: found {repr(part)[:80]}; a part is {{'type': 'text', 'text': ...}} or {{'type': 'image'}}"
        )
    paths.extend(part[key] for key in ("image", "path") if part.get(key) is not None)
    return IMAGE_TOKEN
