"""Shows that ScienceQA is asked, and its answers understood, as LLaVA does it, and grouped as ScienceQA does."""

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_sts.errors import DataError
from megatron_sts.evaluation.science_qa import option_letter, read_science_qa

PROBLEMS: dict[str, dict[str, Any]] = {
    "4": {
        "question": "Which is a mineral?",
        "choices": ["paper", "quartz"],
        "answer": 1,
        "hint": "",
        "image": "image.png",
        "subject": "natural science",
        "grade": "grade6",
    },
    "11": {
        "question": "Which is a pun?",
        "choices": ["a", "b", "c"],
        "answer": 2,
        "hint": "Read the text.",
        "image": None,
        "subject": "language science",
        "grade": "grade7",
    },
    "12": {"question": "What?", "choices": ["a"], "answer": 0},
    "9": {"question": "Of another split", "choices": [], "answer": 0},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, PROBLEMS)
    return tmp_path


def write(folder: Path, problems: dict[str, Any]) -> None:
    (folder / "problems.json").write_text(json.dumps(problems))
    (folder / "pid_splits.json").write_text(json.dumps({"test": ["4", "11", "12"], "train": ["9"]}))


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        (" B\n", None),
        ("B. quartz", "B"),
        ("B\nquartz", "B"),
        # LLaVA's rule wants a letter, a period and a space: these three fall through it.
        ("B.", None),
        ("(B)", None),
        ("b", None),
        ("The answer is B", "B"),
        ("Minerals are solid. The answer is B.", "B"),
        # One with a period goes before one without, wherever they stand.
        ("The answer is A or so. The answer is B.", "B"),
        ("1. The answer is B.", "B"),
        # Not an option of this question.
        ("C", None),
        ("The answer is D.", None),
        ("", None),
        ("paper", None),
    ],
)
def test_the_option_that_an_answer_names(text: str, letter: str | None) -> None:
    assert option_letter(text, 2) == letter


def test_a_split_is_asked_as_llava_asks_multiple_choice_questions(folder: Path) -> None:
    first, second, third = read_science_qa(folder)
    assert (first.id, first.images, first.answer, first.choices) == ("4", ("4/image.png",), "B", 2)
    assert first.turns[0].text == "<image>\nWhich is a mineral?\nA. paper\nB. quartz"
    assert (second.images, second.answer) == ((), "C")
    assert second.text == "Context: Read the text.\nWhich is a pun?\nA. a\nB. b\nC. c"
    assert third.text == "What?\nA. a"
    assert read_science_qa(folder / "problems.json") == [first, second, third]


def test_categories_are_those_of_scienceqas_own_evaluation(folder: Path) -> None:
    first, second, third = read_science_qa(folder)
    assert first.categories == ("natural science", "image", "grades 1-6")
    assert second.categories == ("language science", "text context", "grades 7-12")
    assert third.categories == ("no context",)


def test_llavas_question_file_gives_the_wording(folder: Path) -> None:
    conversations = [
        {"id": name, "conversations": [{"from": "human", "value": f"Number {name}?\n<image>"}, {"value": "B"}]}
        for name in ("12", "4", "11")
    ]
    file = folder / "llava_test_CQM-A.json"
    file.write_text(json.dumps(conversations))
    questions = read_science_qa(file)
    assert [question.turns[0].text for question in questions] == ["<image>\nNumber 4?", "Number 11?", "Number 12?"]
    assert [question.answer for question in questions] == ["B", "C", "A"]
    file.write_text(json.dumps(conversations[:2]))
    with pytest.raises(DataError, match=r"problem '11': is not in the question file"):
        read_science_qa(file)
    file.write_text(json.dumps([{"id": "4"}]))
    with pytest.raises(DataError, match=r"llava_test_CQM-A.json: 1 of 1 .*\n  record 0: conversations"):
        read_science_qa(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"choices": "ab"}, "choices: found 'ab'; give a list of 1 to 5"),
        ({"choices": list("abcdef")}, "choices: found"),
        ({"answer": 2}, "answer: found 2; give the number of an option, from 0 to 1"),
        ({"question": None}, "question: found None"),
        ({"image": 3}, "image: found 3"),
    ],
)
def test_bad_problems_are_named_with_their_field(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    write(tmp_path, PROBLEMS | {"4": PROBLEMS["4"] | change})
    with pytest.raises(DataError, match=f"problems.json: 1 of 3 questions cannot be used:\n  problem '4': {message}"):
        read_science_qa(tmp_path)


def test_what_is_not_there_is_named(folder: Path) -> None:
    with pytest.raises(DataError, match=r"pid_splits.json: has no split 'val'; choose from test, train"):
        read_science_qa(folder, "val")
    write(folder, {"4": PROBLEMS["4"]})
    with pytest.raises(DataError, match=r"problem '11': found None; problems.json must hold every problem"):
        read_science_qa(folder)
    (folder / "pid_splits.json").unlink()
    with pytest.raises(DataError, match=r"pid_splits.json: cannot be read"):
        read_science_qa(folder)
