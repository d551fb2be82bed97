"""Shows which question files are read, as which questions, and what is said of those that are not."""

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_sts.data import Turn
from megatron_sts.errors import DataError
from megatron_sts.evaluation.questions import Question, read_questions

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
        Question(7, ("a.png",), (Turn("human", "<image>\nWhat is it?"),), "two", ("read",)),
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
    write(file, [{"id": "r", "image": "a.png", "conversations": conversation}] * 2)
    with pytest.raises(
        DataError, match=r"id: 2 questions have an id that stands in an earlier record too, such as 'r-0'"
    ):
        read_questions(file)


def test_an_instruction_is_the_last_line_and_stands_there_once() -> None:
    question = Question(1, ("a.png",), (Turn("human", "<image>\nIs it red? "),), "yes")
    asked = question.with_instruction("One word.")
    assert asked.turns == (Turn("human", "<image>\nIs it red?\nOne word."),)
    assert asked.with_instruction("One word.") == asked
    assert question.with_instruction("") == question


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("What?", "found a str; give an object"),
        (GOOD | {"question_id": None}, "question_id: found None"),
        (GOOD | {"text": " "}, "text: found ' '"),
        (GOOD | {"answer": 2}, "answer: found 2"),
        (GOOD | {"image": [3]}, "image: found \\[3\\]"),
        (GOOD | {"category": 4}, "category: found 4"),
        (GOOD, "question_id: 7 stands in an earlier record too"),
    ],
)
@pytest.mark.parametrize(("name", "place"), [("q.jsonl", "line 2"), ("q.json", "record 1")])
def test_bad_records_are_counted_and_named(tmp_path: Path, record: Any, message: str, name: str, place: str) -> None:
    with pytest.raises(DataError, match=f"{name}: 1 of 2 questions cannot be used:\n  {place}: {message}"):
        read_questions(write(tmp_path / name, [GOOD, record]))


def test_a_long_list_of_bad_records_is_cut(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"12 of 12 questions cannot be used \(the first 10\)") as error:
        read_questions(write(tmp_path / "q.jsonl", ["What?"] * 12))
    assert len(str(error.value).splitlines()) == 11


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("q.jsonl", '{"a": 1}\n{', "line 2 is not valid json"),
        ("q.jsonl", "", "holds no list of questions"),
        ("q.json", "[1", "is not valid json"),
        ("q.json", '{"a":\n1}', "holds no list of questions"),
        ("q.json", None, "cannot be read"),
    ],
)
def test_files_that_are_no_question_files_are_refused(
    tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    file = tmp_path / name
    if content is not None:
        file.write_text(content)
    with pytest.raises(DataError, match=message):
        read_questions(file)
