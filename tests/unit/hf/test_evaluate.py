"""Shows that an evaluation counts right answers by category and writes LLaVA's answer format."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from megatron_sts.hf import Question, evaluate
from megatron_sts.hf.evaluate import format_table


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    records = [
        ("q0", "0.png", "What digit is it?", "two", "read"),
        ("q1", "0.png", "is it two?", "Yes.", "exist"),
        ("q2", "1.png", "What digit is it?", "five", "read"),
        ("q3", None, "is it one?", "no", None),
    ]
    names = ("question_id", "image", "text", "answer", "category")
    file = tmp_path / "questions.jsonl"
    file.write_text("\n".join(json.dumps(dict(zip(names, record, strict=True))) for record in records))
    return file


def says_two_or_yes(questions: Sequence[Question]) -> list[str]:
    return ["two" if question.text.startswith("What") else "yes" for question in questions]


def test_right_answers_are_counted_over_all_and_by_category(questions: Path) -> None:
    result = evaluate(Path("model"), questions, predictor=says_two_or_yes)
    assert (result["questions"], result["pictures"], result["correct"], result["accuracy"]) == (4, 3, 2, 0.5)
    low, high = result["interval_95"]
    assert 0 <= low < 0.5 < high <= 1
    read, exist = result["by_category"]["read"], result["by_category"]["exist"]
    assert (read["questions"], read["pictures"], read["correct"], read["accuracy"]) == (2, 2, 1, 0.5)
    assert (exist["accuracy"], exist["interval_95"]) == (1.0, [1.0, 1.0])
    assert set(result["by_category"]) == {"read", "exist"}
    assert json.loads(json.dumps(result)) == result


def test_the_table_has_a_row_for_all_and_for_every_category(questions: Path) -> None:
    lines = format_table(evaluate(Path("model"), questions, predictor=says_two_or_yes)).splitlines()
    assert [line.split()[:3] for line in lines[1:]] == [
        ["all", "4", "50.0%"],
        ["exist", "1", "100.0%"],
        ["read", "2", "50.0%"],
    ]


def test_predictions_are_written_in_llavas_answer_format(questions: Path, tmp_path: Path) -> None:
    file = tmp_path / "deep" / "answers.jsonl"
    evaluate(tmp_path / "model", questions, predictor=says_two_or_yes, predictions=file)
    answers = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(answer["question_id"], answer["text"]) for answer in answers] == [
        ("q0", "two"),
        ("q1", "yes"),
        ("q2", "two"),
        ("q3", "yes"),
    ]
    assert set(answers[0]) == {"question_id", "prompt", "text", "answer_id", "model_id", "metadata"}
    assert (answers[0]["prompt"], answers[0]["model_id"]) == ("What digit is it?", "model")
    assert [answer["metadata"]["correct"] for answer in answers] == [True, True, False, False]
    assert len({answer["answer_id"] for answer in answers}) == 4


def test_an_exported_model_answers_with_its_own_chat_template(exported: Path, questions: Path, pictures: Path) -> None:
    seen: list[tuple[int, int]] = []
    result = evaluate(
        exported,
        questions,
        pictures,
        device="cpu",
        max_new_tokens=2,
        progress=lambda *done: seen.append(done),
    )
    assert result["questions"] == 4
    assert seen[-1] == (4, 4)
