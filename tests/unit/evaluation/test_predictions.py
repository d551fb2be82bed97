"""Shows that answers are written as they come, taken up again, and never mixed with those of another evaluation."""

import json
from pathlib import Path

import pytest

from megatron_sts.data import Turn
from megatron_sts.errors import DataError
from megatron_sts.evaluation.predictions import Predictions
from megatron_sts.evaluation.questions import Question

QUESTIONS = [
    Question(name, images, (Turn("human", "<image>\n" * len(images) + f"{name}?"),), "two", ("read",))
    for name, images in (("a", ("0.png",)), ("b", ()), (3, ("1.png",)))
]
MADE_BY: dict[str, str | int] = {"model": "m1", "questions": "q1", "dtype": "float32"}


def opened(path: Path, **changes: str) -> Predictions:
    return Predictions(path, "model", QUESTIONS, MADE_BY | changes)


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_answers_are_in_the_file_at_once_and_taken_up_again(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "answers.jsonl"
    with opened(path) as first:
        assert [question.id for question in first.unanswered] == ["a", "b", 3]
        first.add(QUESTIONS[2], "five")
        assert [line["question_id"] for line in lines(path)] == [3]
        first.add(QUESTIONS[0], "two")
    # A killed evaluation leaves part of a line behind.
    with path.open("a") as file:
        file.write('{"question_id": "b", "te')
    with opened(path) as second:
        assert second.answers == {"a": "two", 3: "five"}
        assert [question.id for question in second.unanswered] == ["b"]
        second.add(QUESTIONS[1], "no")
        second.finish({"a": "two", "b": None, 3: "five"}, {"a": True, "b": False, 3: False})
    finished = lines(path)
    assert [(line["question_id"], line["text"]) for line in finished] == [("a", "two"), ("b", "no"), (3, "five")]
    assert finished[1]["metadata"] == {
        "categories": ["read"],
        "answer": "two",
        "found": None,
        "correct": False,
        "made_by": MADE_BY,
    }
    assert opened(path).unanswered == []


def test_lines_are_in_llavas_answer_format(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with Predictions(path, "model", QUESTIONS, MADE_BY, marks_images=True) as held:
        for question in QUESTIONS:
            held.add(question, "two")
    assert set(lines(path)[0]) == {"question_id", "prompt", "text", "answer_id", "model_id", "metadata"}
    assert [line["prompt"] for line in lines(path)] == ["<image>\na?", "b?", "<image>\n3?"]
    assert len({str(line["answer_id"]) for line in lines(path)}) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "m2"}, "model 'm1' instead of 'm2'"),
        ({"questions": "q2"}, "questions 'q1' instead of 'q2'"),
        ({"dtype": "bfloat16"}, "dtype 'float32' instead of 'bfloat16'"),
    ],
)
def test_answers_of_another_evaluation_are_refused_and_left_alone(
    tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    path = tmp_path / "answers.jsonl"
    with opened(path) as held:
        held.add(QUESTIONS[0], "two")
    before = path.read_bytes()
    with pytest.raises(DataError, match=f"line 1 was made by another evaluation: {message}"):
        opened(path, **changes)
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", ['{"question_id": "a", "text": "two", "metadata": {}}\n', "A text.\n\n", "[1]\n"])
def test_files_that_hold_something_else_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "notes.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match="line 1 is no answer of an evaluation"):
        opened(path)
    assert path.read_text() == content


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"), opened(tmp_path / "file" / "answers.jsonl"):
        pass
    with pytest.raises(DataError, match="cannot be read"):
        opened(tmp_path)
