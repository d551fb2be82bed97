"""Shows which question files are read, as which questions, and what is said of those that are not."""

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_sts.data import Turn
from megatron_sts.errors import DataError
from megatron_sts.hf.questions import Question, read_questions

GOOD = {"question_id": 7, "image": "a.png", "text": "What is it?", "answer": "two", "category": "read"}


def write(path: Path, records: list[Any]) -> Path:
    lines = "\n".join(json.dumps(record) for record in records)
    path.write_text(lines if path.suffix == ".jsonl" else json.dumps(records))
    return path


@pytest.mark.parametrize("name", ["q.jsonl", "q.json"])
def test_question_records_become_questions(tmp_path: Path, name: str) -> None:
    records = [
        GOOD,
        {"question_id": "b", "image": ["a.png", "b.png"], "text": "<image>\nWhich? ", "answer": "a"},
        {"question_id": "c", "text": "One?", "answer": "yes", "grid": [[1]]},
    ]
    assert read_questions(write(tmp_path / name, records)) == [
        Question(7, ("a.png",), (Turn("human", "<image>\nWhat is it?"),), "two", "read"),
        Question("b", ("a.png", "b.png"), (Turn("human", "<image>\n<image>\nWhich?"),), "a"),
        Question("c", (), (Turn("human", "One?"),), "yes"),
    ]


def test_every_answer_of_a_conversation_is_asked_for_after_the_turns_before_it(tmp_path: Path) -> None:
    turns = ["<image>\nWhat is it?", "two", "Sure?", "yes"]
    conversation = [{"from": "gpt" if i % 2 else "human", "value": turn} for i, turn in enumerate(turns)]
    file = write(tmp_path / "q.json", [{"id": "r", "image": "a.png", "conversations": conversation}])
    first, second = read_questions(file)
    assert (first.id, first.text, first.answer) == ("r-0", "What is it?", "two")
    assert (second.id, second.text, second.answer) == ("r-1", "Sure?", "yes")
    assert [turn.text for turn in second.turns] == turns[:3]
    assert first.images == second.images == ("a.png",)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("What?", "found a str; give an object"),
        (GOOD | {"question_id": None}, "question_id: found None"),
        (GOOD | {"text": " "}, "text: found ' '"),
        (GOOD | {"answer": 2}, "answer: found 2"),
        (GOOD | {"image": [3]}, "image: found \\[3\\]"),
        (GOOD | {"category": 4}, "category: found 4"),
    ],
)
def test_bad_records_are_counted_and_named(tmp_path: Path, record: Any, message: str) -> None:
    with pytest.raises(DataError, match=f"1 of 2 questions cannot be used:\n  record 1: {message}"):
        read_questions(write(tmp_path / "q.jsonl", [GOOD, record]))


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "is not valid json"), ("", "holds no list of questions"), (None, "cannot be read")],
)
def test_files_that_are_no_question_files_are_refused(tmp_path: Path, content: str | None, message: str) -> None:
    file = tmp_path / "q.jsonl"
    if content is not None:
        file.write_text(content)
    with pytest.raises(DataError, match=message):
        read_questions(file)
