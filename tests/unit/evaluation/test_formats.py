"""Shows that the format of a file of questions is told by what it holds, and why is said."""

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_sts.arguments import QUESTION_FORMATS
from megatron_sts.errors import DataError
from megatron_sts.evaluation.formats import FORMATS, detect_format

CONVERSATION = {"id": "1", "conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "a"}]}


@pytest.mark.parametrize(
    ("record", "beside", "expected"),
    [
        ({"question_id": 1, "text": "?", "answer": "a", "category": "c"}, None, ("llava", "have an answer")),
        (CONVERSATION, None, ("llava", "are conversations")),
        (CONVERSATION, "problems.json", ("scienceqa", "problems.json is beside it")),
        ({"question_id": 1, "text": "?", "label": "yes"}, None, ("pope", "have a label")),
        ({"question_id": 1, "text": "?", "category": "random"}, None, ("pope", "neither answer nor label")),
    ],
)
def test_a_file_is_told_by_its_first_record(
    tmp_path: Path, record: dict[str, Any], beside: str | None, expected: tuple[str, str]
) -> None:
    file = tmp_path / "q.json"
    file.write_text(json.dumps([record]))
    if beside is not None:
        (tmp_path / beside).write_text("{}")
    name, reason = detect_format(file)
    assert name == expected[0]
    assert expected[1] in reason


@pytest.mark.parametrize(("inside", "name"), [("coco_pope_random.json", "pope"), ("problems.json", "scienceqa")])
def test_a_folder_is_told_by_the_files_in_it(tmp_path: Path, inside: str, name: str) -> None:
    (tmp_path / inside).write_text("{}")
    found, reason = detect_format(tmp_path)
    assert found == name
    assert reason.startswith("the folder has")


def test_what_cannot_be_told_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds neither POPE's files nor problems.json"):
        detect_format(tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        detect_format(tmp_path / "nowhere.jsonl")


def test_the_commands_offer_exactly_these_formats() -> None:
    assert tuple(FORMATS) == QUESTION_FORMATS
