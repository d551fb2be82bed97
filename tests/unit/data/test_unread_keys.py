"""Shows that keys which nothing reads are counted with an example, and that harmless ones are not."""

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_sts.data.check import check_data
from megatron_sts.data.check_text import check_text
from megatron_sts.data.unread_keys import UnreadKey, UnreadKeys, unread_text

TURNS = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]


def line(*records: Any) -> str:
    keys = UnreadKeys()
    for number, record in enumerate(records):
        keys.look(str(record.get("id", number)) if isinstance(record, dict) else str(number), record)
    return unread_text(keys.found())


def test_each_key_is_counted_with_the_first_record_that_has_it() -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "Hi", "cache_control": {"type": "x"}}]}]
    found = line(
        {"id": "a", "conversations": TURNS, "system": "Be brief."},
        {"id": "b", "conversations": [*TURNS, TURNS[0] | {"thought": "Well"}], "tools": "[]"},
        {"id": "c", "conversations": TURNS, "tools": "[{}]"},
        {"id": "d", "messages": [*messages, {"role": "assistant", "content": "x", "tool_calls": [1]}]},
        TURNS,
    )
    assert found == (
        "read nowhere: `tools` 2 times, first in record 'b'; `system` once, in record 'a'; "
        "`conversations[].thought` once, in record 'b'; `messages[].content[].cache_control` once, in record 'd'; "
        "`messages[].tool_calls` once, in record 'd'"
    )


@pytest.mark.parametrize(
    "more",
    [
        {"source": "coco", "data_source": "x", "width": 3, "height": 4, "width_list": [3], "url": "https://x/a.png"},
        {"model": "", "tools": None, "system": "", "choice_list": [], "video": None},
        {"weight": 2, "image": "a.png"},
    ],
)
def test_keys_that_are_read_harmless_or_empty_are_not_listed(more: dict[str, Any]) -> None:
    assert line({"id": 1, "conversations": TURNS} | more) == ""


def test_the_line_stays_short_whatever_the_keys_are() -> None:
    many = line(*({"conversations": TURNS, f"{number:03d}" + "k" * 5000 + "\n": 1} for number in range(300)))
    assert many.endswith("; and 90 more") and len(many) < 10 * 140 and "\n" not in many
    assert str(UnreadKey("x", 1234, "7")) == "`x` 1,234 times, first in record '7'"


def test_a_check_says_so(tmp_path: Path) -> None:
    data = tmp_path / "data.json"
    data.write_text(json.dumps([{"id": "x", "conversations": TURNS, "tools": "[1]"}] * 12 + [{"id": 3, "tools": "a"}]))
    found = check_data(data, None)
    assert found["unread_keys"] == [{"key": "tools", "count": 12, "first": "x"}]
    assert "\nread nowhere: `tools` 12 times, first in record 'x'\n" in check_text(found)
