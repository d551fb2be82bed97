"""The conversation of a record in LLaVA's json format, or what is wrong with it."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from megatron_sts.data.embedded_image import Place, field_of
from megatron_sts.data.image_value import image_of
from megatron_sts.data.loss_weight import loss_weight
from megatron_sts.data.sample import IMAGE_TOKEN, Picture, RecordError, Role, Sample, Turn
from megatron_sts.errors import shown
from megatron_sts.records import Member

ROLES: dict[str, Role] = {"human": "human", "user": "human", "gpt": "assistant", "assistant": "assistant"}
SPEAKERS = frozenset({*ROLES, "system"})
# Would be trained on as if only its text were there.
_OTHER_MEDIA = ("video", "videos", "audio", "audios")
_IMAGE_KEYS = ("image", "image_url", "url", "base64", "path", "bytes")
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
        raise RecordError(f"id: found {shown(identifier)}; give a string or a number, or leave it out")
    for medium in _OTHER_MEDIA:
        if record.get(medium):
            raise _not_trained_on(medium, record[medium])
    field = "messages" if "messages" in record and "conversations" not in record else "conversations"
    entries = record.get(field)
    if not isinstance(entries, list) or not entries:
        found = "nothing" if entries is None else shown(entries)
        raise RecordError(f"{field}: found {found}; give a list of turns, human first")

    in_parts: list[tuple[Place, Any]] = []
    turns = [_turn((field, position), entry, in_parts) for position, entry in enumerate(entries)]
    weight = loss_weight((), record)
    system = turns.pop(0)[1] if turns[0][0] == "system" else None
    conversation = _conversation(field, turns, weight, first=0 if system is None else 1)
    images = _images(record, in_parts)
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


def _images(record: dict[str, Any], in_parts: list[tuple[Place, Any]]) -> tuple[Picture, ...]:
    """The images that a record names for itself, or where it names none those in the parts of its messages."""
    one, several = record.get("image"), record.get("images")
    if one is not None and several is not None:
        raise RecordError("image: found both 'image' and 'images'; give one of the two")
    field, value = ("image", one) if several is None else ("images", several)
    if value is None:
        return tuple(image_of(place, found) for place, found in in_parts)
    if isinstance(value, list):
        return tuple(image_of((field, number), found) for number, found in enumerate(value))
    return (image_of((field,), value),)


def _conversation(field: str, turns: list[tuple[str, str, float]], weight: float, first: int) -> tuple[Turn, ...]:
    """The turns after the system prompt, the first of which is number `first` of the record.

    weight: the record's own, which multiplies those of its answers. An empty answer has no loss, as in LLaVA's code.
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
        if expected == "human":
            conversation.append(Turn(expected, text))
        else:
            conversation.append(Turn(expected, text, weight * own_weight if text.strip() else 0.0))
    if not conversation:
        raise RecordError(f"{field}: found a system turn alone; add a question and its answer")
    if conversation[-1].role == "human":
        raise RecordError(
            f"{field}[{first + len(turns) - 1}]: found a human turn without an answer; add the answer or "
            "remove the turn"
        )
    return tuple(conversation)


def _turn(place: Place, entry: Any, images: list[tuple[Place, Any]]) -> tuple[str, str, float]:
    """Who speaks, as written, the text and its weight; the images in its parts are added to `images`."""
    if not isinstance(entry, dict):
        raise RecordError(f"{field_of(place)}: found {shown(entry)}; a turn is an object with 'from' and 'value'")
    speaker, content = ("role", "content") if "role" in entry and "from" not in entry else ("from", "value")
    name, text = entry.get(speaker), entry.get(content)
    if not isinstance(name, str) or name not in SPEAKERS:
        raise RecordError(
            f"{field_of((*place, speaker))}: found {shown(name)}; use 'human' or 'gpt', or 'system' in the first turn"
        )
    if isinstance(text, list):
        text = "".join([_part((*place, content, number), part, images) for number, part in enumerate(text)])
    if not isinstance(text, str):
        raise RecordError(f"{field_of((*place, content))}: found {shown(text)}; give the turn's text")
    if not text.isascii() and _HALF_OF_A_PAIR.search(text):
        raise RecordError(
            f"{field_of((*place, content))}: found half of a surrogate pair, which is no character; correct the text"
        )
    if ROLES.get(name) != "human" and IMAGE_TOKEN in text:
        where = "a system prompt" if name == "system" else "an answer"
        raise RecordError(
            f"{field_of((*place, content))}: found {IMAGE_TOKEN} in {where}; only human turns may hold images"
        )
    return name, text, loss_weight(place, entry)


def _part(place: Place, part: Any, images: list[tuple[Place, Any]]) -> str:
    """The text of a part of a message, as transformers' chat templates and OpenAI's messages have them.

    `<image>` for an image, which is added to `images` where the part holds it.
    """
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(part, dict) and kind in ("text", None) and isinstance(part.get("text"), str):
        return str(part["text"])
    if kind in _OTHER_MEDIA or kind in ("video_url", "input_audio"):
        raise _not_trained_on(field_of((*place, "type")), kind)
    if kind not in ("image", "image_url") and (kind is not None or not isinstance(part, dict) or "image" not in part):
        raise RecordError(
            f"{field_of(place)}: found {shown(part)}; a part is {{'type': 'text', 'text': ...}}, {{'type': 'image'}} "
            "or {'type': 'image_url', 'image_url': {'url': ...}}"
        )
    key = next((key for key in _IMAGE_KEYS if part.get(key) is not None), None)
    if key in ("path", "bytes"):
        # The part itself is what a table has as an image.
        images.append((place, {name: part.get(name) for name in ("bytes", "path")}))
    elif key is not None:
        images.append(((*place, key), part[key]))
    return IMAGE_TOKEN


def _not_trained_on(field: str, value: Any) -> RecordError:
    return RecordError(
        f"{field}: found {shown(value)}; only text and images are trained on: remove the record, or give images in "
        "place of it"
    )
