"""The conversation of a record in LLaVA's json format, or what is wrong with it."""

import posixpath
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from megatron_sts.data.loss_weight import loss_weight
from megatron_sts.data.sample import IMAGE_TOKEN, RecordError, Role, Sample, Turn
from megatron_sts.records import Member

ROLES: dict[str, Role] = {"human": "human", "user": "human", "gpt": "assistant", "assistant": "assistant"}
_HALF_OF_A_PAIR = re.compile("[\ud800-\udfff]")


def sample_of_record(number: int, record: Any, members: Sequence[Member] | None = None) -> Sample:
    """The conversation of one record, whose id is its `number` where it has none; RecordError if it is bad.

    members: in a shard the record's pictures, which stand for the paths that it names; None: in a json file. In a shard
    a list alone, of turns, is a record too.
    """
    if members is None:
        return _sample(number, record)
    if isinstance(record, list):
        record = {"conversations": record}
    if not isinstance(record, dict):
        return _sample(number, record)
    named = record.get("image") or record.get("images")
    count = len(named) if isinstance(named, list) else 1
    if named and count != len(members):
        raise RecordError(f"image: found {count} of them and {len(members)} pictures in the shard; pack it again")
    others = {name: value for name, value in record.items() if name not in ("image", "images")}
    sample = _sample(number, others | {"image": [str(place) for place in range(len(members))]})
    return replace(sample, images=tuple(members))


def _sample(number: int, record: Any) -> Sample:
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
    weight = loss_weight("", record)
    system = turns.pop(0)[1] if turns[0][0] == "system" else None
    conversation = _conversation(field, turns, weight, first=0 if system is None else 1)
    images = _images(record, paths_in_parts)
    marks = sum(turn.text.count(IMAGE_TOKEN) for turn in conversation if turn.role == "human")
    if images and not marks:
        conversation = (
            replace(conversation[0], text=IMAGE_TOKEN * len(images) + conversation[0].text),
            *conversation[1:],
        )
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


def _conversation(field: str, turns: list[tuple[str, str, float]], weight: float, first: int) -> tuple[Turn, ...]:
    """The turns after the system prompt, the first of which is number `first` of the record.

    weight: the record's own, which multiplies those of its answers.
    """
    conversation: list[Turn] = []
    for number, (name, text, own_weight) in enumerate(turns):
        expected: Role = "assistant" if number % 2 else "human"
        if name == "system":
            raise RecordError(f"{field}[{first + number}]: found a system turn; it goes before all others, once")
        if ROLES[name] != expected:
            raise RecordError(
                f"{field}[{first + number}].from: found {name!r} where a {expected} turn belongs; "
                "let human and gpt alternate, human first"
            )
        conversation.append(Turn(expected, text, weight * own_weight) if number % 2 else Turn(expected, text))
    if not conversation:
        raise RecordError(f"{field}: found a system turn alone; add a question and its answer")
    if conversation[-1].role == "human":
        raise RecordError(
            f"{field}[{first + len(turns) - 1}]: found a human turn without an answer; add the answer or "
            "remove the turn"
        )
    return tuple(conversation)


def _turn(field: str, entry: Any, paths: list[Any]) -> tuple[str, str, float]:
    """Who speaks, as written, the text and its weight; the paths of images in its parts are added to `paths`."""
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
    if _HALF_OF_A_PAIR.search(text):
        raise RecordError(f"{field}.{content}: found half of a surrogate pair, which is no character; mend the text")
    if ROLES.get(name) != "human" and IMAGE_TOKEN in text:
        where = "a system prompt" if name == "system" else "an answer"
        raise RecordError(f"{field}.{content}: found {IMAGE_TOKEN} in {where}; only human turns may hold images")
    if ROLES.get(name) == "assistant" and not text.strip():
        raise RecordError(f"{field}.{content}: found an empty answer; write it or remove it and its question")
    return name, text, loss_weight(f"{field}.", entry)


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
