"""The keys of records and turns that nothing reads: what they mean would be lost without a word."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from megatron_sts.errors import shown

_OF_LOSS = {"weight", "loss_weight", "loss"}
# What is read, and what published data sets carry that says where a record comes from or can be told from its image.
_OF_RECORDS = frozenset(
    _OF_LOSS
    | {"id", "conversations", "messages", "image", "images", "video", "videos", "audio", "audios"}
    | {"source", "data_source", "dataset", "dataset_name", "ds_name", "subset", "split", "task", "task_type"}
    | {"idx", "index", "uid", "uuid", "sample_id", "question_id", "image_id", "img_id", "conversation_id", "url"}
    | {"width", "height", "width_list", "height_list", "image_size", "image_width", "image_height", "num_images"}
    | {"model", "category", "lang", "language", "license", "metadata", "timestamp", "created_at"}
)
_OF_TURNS = frozenset(_OF_LOSS | {"from", "value", "role", "content", "id", "timestamp", "lang", "language"})
_OF_PARTS = frozenset({"type", "text", "image", "image_url", "url", "base64", "path", "bytes"})
# Beyond it the keys of the records are themselves data, as in a mapping by name.
_MOST_KEYS = 100
_SHOWN_KEYS = 10


@dataclass(slots=True)
class UnreadKey:
    """A key, the number of times that it stands there with a value, and the id of the first record that has it."""

    key: str
    count: int
    first: str

    def __str__(self) -> str:
        times = "once" if self.count == 1 else f"{self.count:,} times"
        return f"`{shown(self.key)[1:-1]}` {times}, {'' if self.count == 1 else 'first '}in record {shown(self.first)}"


class UnreadKeys:
    """Such keys of the good records that were looked at."""

    def __init__(self) -> None:
        self._found: dict[str, UnreadKey] = {}

    def found(self) -> list[UnreadKey]:
        """The keys, the most frequent first."""
        return sorted(self._found.values(), key=lambda one: -one.count)

    def look(self, name: str, record: Any) -> None:
        """Take in a good record, whose id is `name`."""
        turns, field = record, "conversations"
        if isinstance(record, dict):
            if not record.keys() <= _OF_RECORDS:
                self._count(name, "", record, _OF_RECORDS)
            if "conversations" not in record:
                field = "messages"
            turns = record[field]
        for turn in turns:
            if not turn.keys() <= _OF_TURNS:
                self._count(name, f"{field}[].", turn, _OF_TURNS)
            content = "content" if "role" in turn and "from" not in turn else "value"
            if isinstance(turn[content], list):
                for part in turn[content]:
                    if not part.keys() <= _OF_PARTS:
                        self._count(name, f"{field}[].{content}[].", part, _OF_PARTS)

    def _count(self, name: str, before: str, values: dict[str, Any], known: frozenset[str]) -> None:
        for key in values:
            # Tables write every column of every record, nearly all of them empty.
            if key in known or values[key] is None or values[key] in ("", [], {}):
                continue
            found = self._found.get(before + key)
            if found is not None:
                found.count += 1
            elif len(self._found) < _MOST_KEYS:
                self._found[before + key] = UnreadKey(before + key, 1, name)


def unread_text(keys: Sequence[UnreadKey]) -> str:
    """One line that names them; empty where there are none."""
    if not keys:
        return ""
    more = f"; and {len(keys) - _SHOWN_KEYS} more" if len(keys) > _SHOWN_KEYS else ""
    return f"read nowhere: {'; '.join(map(str, keys[:_SHOWN_KEYS]))}{more}"
