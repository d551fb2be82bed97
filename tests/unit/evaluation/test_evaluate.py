"""Shows that an evaluation counts right answers by category, keeps them, goes on after a stop, and checks first."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from megatron_sts.errors import ConversionError, DataError
from megatron_sts.evaluation import Question, evaluate, format_table


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """As much of a model as an evaluation with other answers than the model's looks at."""
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    return directory


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


def says_two_or_yes(questions: Sequence[Question]) -> Iterable[tuple[int, str]]:
    answers = ["two" if question.text.startswith("What") else "yes" for question in questions]
    return reversed(list(enumerate(answers)))


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


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


def test_pope_is_counted_by_split(tmp_path: Path) -> None:
    # Says yes to all but one: 2 of 4 right; yes to 3 of 4, of which 2 are there.
    lines = [
        {"question_id": number, "image": "0.png", "text": text, "label": label, "category": split}
        for number, (text, label, split) in enumerate(
            [("dog", "yes", "random"), ("cat", "no", "random"), ("cow", "no", "popular"), ("owl", "yes", "popular")]
        )
    ]
    file = write(tmp_path / "q.jsonl", lines)

    def predictor(asked: Sequence[Question]) -> Iterable[tuple[int, str]]:
        assert all(question.text.endswith("\nAnswer the question using a single word or phrase.") for question in asked)
        return enumerate("No." if question.text.startswith("cow") else "Yes, it is." for question in asked)

    result = evaluate(Path("model"), file, predictor=predictor)
    assert (result["format"], result["accuracy"], result["precision"]) == ("pope", 0.75, 2 / 3)
    assert (result["recall"], result["f1"], result["yes_ratio"]) == (1.0, pytest.approx(0.8), 0.75)
    random, popular = result["by_category"]["random"], result["by_category"]["popular"]
    assert (random["accuracy"], random["precision"], popular["accuracy"], popular["f1"]) == (0.5, 0.5, 1.0, 1.0)
    assert format_table(result).splitlines()[1].split()[:7] == [
        "all",
        "4",
        "75.0%",
        "66.7%",
        "100.0%",
        "80.0%",
        "75.0%",
    ]


def test_scienceqa_counts_the_unanswered_as_wrong(tmp_path: Path) -> None:
    problem = {"question": "Which?", "choices": ["a", "b"], "answer": 1, "image": None}
    problems = {"1": problem, "2": problem | {"image": "image.png"}, "3": problem | {"image": "image.png"}}
    (tmp_path / "problems.json").write_text(json.dumps(problems))
    (tmp_path / "pid_splits.json").write_text(json.dumps({"test": ["1", "2", "3"]}))

    def predictor(asked: Sequence[Question]) -> Iterable[tuple[int, str]]:
        ending = "\nAnswer with the option's letter from the given choices directly."
        assert all(question.text.endswith(ending) for question in asked)
        return enumerate(["B. b", "I see no letter", "B"])

    result = evaluate(Path("model"), tmp_path, predictor=predictor)
    assert (result["format"], result["correct"], result["unanswered"]) == ("scienceqa", 2, 1)
    image = result["by_category"]["image"]
    assert (image["questions"], image["accuracy"], image["unanswered"]) == (2, 0.5, 1)
    assert result["by_category"]["no context"]["accuracy"] == 1.0


def test_the_table_has_a_row_for_all_and_for_every_category(questions: Path) -> None:
    lines = format_table(evaluate(Path("model"), questions, predictor=says_two_or_yes)).splitlines()
    assert [line.split()[:3] for line in lines[1:]] == [
        ["all", "4", "50.0%"],
        ["exist", "1", "100.0%"],
        ["read", "2", "50.0%"],
    ]


def test_a_stopped_evaluation_goes_on_and_asks_nothing_twice(model: Path, questions: Path, tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    asked: list[str | int] = []

    def stops_after(number: int) -> Any:
        def predictor(questions: Sequence[Question]) -> Iterable[tuple[int, str]]:
            for count, (position, answer) in enumerate(says_two_or_yes(questions)):
                if count == number:
                    raise KeyboardInterrupt
                asked.append(questions[position].id)
                yield position, answer

        return predictor

    with pytest.raises(KeyboardInterrupt):
        evaluate(model, questions, predictions=file, predictor=stops_after(3))
    seen: list[tuple[int, int]] = []
    result = evaluate(
        model, questions, predictions=file, predictor=stops_after(9), progress=lambda *done: seen.append(done)
    )
    assert sorted(map(str, asked)) == ["q0", "q1", "q2", "q3"]
    assert seen == [(3, 4), (4, 4)]
    assert result == evaluate(model, questions, predictor=says_two_or_yes)
    written = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(line["question_id"], line["metadata"]["correct"]) for line in written] == [
        ("q0", True),
        ("q1", True),
        ("q2", False),
        ("q3", False),
    ]
    # All is answered: neither the model nor the predictor is needed to count again.
    assert evaluate(model, questions, predictions=file, predictor=stops_after(0)) == result
    (model / "config.json").write_text('{"another": "model"}')
    with pytest.raises(DataError, match="made by another evaluation: model"):
        evaluate(model, questions, predictions=file, predictor=says_two_or_yes)


def test_an_exported_model_answers_with_its_own_chat_template(
    exported: Path, questions: Path, pictures: Path, tmp_path: Path
) -> None:
    seen: list[tuple[int, int]] = []
    file = tmp_path / "answers.jsonl"
    options: dict[str, Any] = {"images": pictures, "predictions": file, "device": "cpu", "max_new_tokens": 2}
    result = evaluate(exported, questions, **options, batch_size=3, progress=lambda *done: seen.append(done))
    assert (result["questions"], result["dtype"]) == (4, "float32")
    assert seen == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:2]))
    assert evaluate(exported, questions, **options) == result
    assert file.read_text() == "".join(lines)


def test_bad_questions_and_missing_pictures_come_before_the_model(model: Path, questions: Path) -> None:
    # This model cannot be loaded: an error about something else came first.
    with pytest.raises(DataError, match=r"2 pictures of the questions are not there: 0.png, 1.png; give their folder"):
        evaluate(model, questions, device="cpu")
    questions.write_text('{"question_id": 1}')
    with pytest.raises(DataError, match="line 1: text: found None"):
        evaluate(model, questions, device="cpu")
    with pytest.raises(ConversionError, match=r"nowhere: no config.json"):
        evaluate(Path("nowhere"), questions)
