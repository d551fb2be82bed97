"""Shows that the places found in a json file are those of its records, however they and the blocks read lie."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from megatron_sts.errors import DataError
from megatron_sts.records import find_records, json_file


@pytest.fixture(params=[1, 7, 1 << 20])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Bytes read at once."""
    monkeypatch.setattr(json_file, "_BLOCK_BYTES", request.param)
    return int(request.param)


VALUES: list[Any] = [
    {"text": "ü, 漢字, 😀 and \u2028 between"},
    12345678,
    -0.5e3,
    "a ] b",
    [],
    [[1], {"a": [2, {"b": "}"}]}],
    None,
    True,
    {"long": "x" * 3000},
    0,
]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("escaped", [True, False])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_every_record_is_read_again_from_its_place(
    tmp_path: Path, block: int, indent: int | None, escaped: bool, mark: bytes
) -> None:
    path = tmp_path / "data.json"
    text = json.dumps(VALUES, indent=indent, ensure_ascii=escaped)
    path.write_bytes(mark + b" \n" + text.encode() + b"\r\n ")
    seen: list[Any] = []
    places = find_records(path, lambda number, value, members: seen.append((number, value, members)))
    assert seen == [(number, value, None) for number, value in enumerate(VALUES)]
    order = random.Random(1).sample(range(len(VALUES)), len(VALUES))
    assert [places.read(number) for number in order] == [(VALUES[number], None) for number in order]


@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b""])
def test_lines_are_records(tmp_path: Path, ending: bytes) -> None:
    path = tmp_path / "data.jsonl"
    lines = [json.dumps(value, ensure_ascii=False).encode() for value in VALUES]
    path.write_bytes(b"\xef\xbb\xbf" + b"\n\n".join(lines) + ending)
    places = find_records(path)
    assert [places.read(number)[0] for number in range(len(places))] == VALUES


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[1, 2", "line 1, column 6 is not valid json (Expecting ',' delimiter)"),
        ("[1 2]", "line 1, column 4 is not valid json (Expecting ',' delimiter)"),
        ("[1,\n 2,\n]", "line 3, column 1 is not valid json (Expecting value)"),
        ('[1,\n {"a": "ü",\n  "b" 2}]', "line 3, column 7 is not valid json (Expecting ':' delimiter)"),
        ("[1]\n\n x", "line 3, column 2 is not valid json (Extra data)"),
        ("", "line 1, column 1 is not valid json (Expecting value)"),
        ('["a', "line 1, column 2 is not valid json (Unterminated string starting at)"),
        ("7", "found a int at the top"),
    ],
)
def test_a_fault_is_named_with_its_line_and_column(tmp_path: Path, block: int, text: str, expected: str) -> None:
    path = tmp_path / "data.json"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        find_records(path)
    assert str(caught.value).startswith(f"{path}: {expected}")


@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
def test_a_record_without_end_does_not_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(json_file, "LARGEST_RECORD_BYTES", 10_000)
    monkeypatch.setattr(json_file, "_BLOCK_BYTES", 1000)
    path = tmp_path / name
    path.write_text('[1,\n"' + "x" * 100_000 if name == "data.json" else "1\n" + "[" + " " * 100_000)
    with pytest.raises(DataError, match="line 2 begins a record of more than 10000 bytes"):
        find_records(path)


def test_a_file_that_changed_is_named(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text("[1, 2]")
    places = find_records(path)
    path.write_text("[1, 2, 3]")
    with pytest.raises(DataError, match=r"data\.json: was changed while it was in use"):
        places.read(0)
    path.unlink()
    with pytest.raises(DataError, match=r"data\.json: cannot be read"):
        places.read(0)
