"""Shows that POPE's files are read and its answers understood and counted as POPE itself does it."""

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_sts.errors import DataError
from megatron_sts.evaluation.pope import read_pope, said_yes_or_no, yes_no_figures

LABELS = ["yes", "no", "yes"]


def records(labels: list[str]) -> list[dict[str, Any]]:
    text = "Is there a {} in the image?"
    return [
        {"question_id": number, "image": f"{number}.jpg", "text": text.format("dog"), "label": label}
        for number, label in enumerate(labels, start=1)
    ]


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Yes", "yes"),
        ("no", "no"),
        ("No, there is no dog in the image.", "no"),
        # The first sentence alone counts.
        ("Yes. There is no cat, though.", "yes"),
        ("It is not there", "no"),
        # Only whole words between spaces, in these spellings, after commas are taken out.
        ("NO", "yes"),
        ("None", "yes"),
        ("There is,not, one", "yes"),
        ("There is, not, one", "no"),
        ("", "yes"),
    ],
)
def test_answers_are_understood_by_popes_rule(text: str, said: str) -> None:
    assert said_yes_or_no(text) == said


def test_the_figures_of_ten_answers_counted_by_hand() -> None:
    # 6 objects are there, of which 4 are seen; of the 4 that are not, 1 is seen.
    labels = ["yes"] * 6 + ["no"] * 4
    found = ["yes"] * 4 + ["no"] * 2 + ["yes"] + ["no"] * 3
    assert yes_no_figures(labels, found) == {
        "true_positives": 4,
        "false_positives": 1,
        "true_negatives": 3,
        "false_negatives": 2,
        "precision": pytest.approx(4 / 5),
        "recall": pytest.approx(4 / 6),
        # 2 P R / (P + R) = 2 (4/5) (2/3) / (22/15) = (16/15) (15/22) = 8/11
        "f1": pytest.approx(8 / 11),
        "yes_ratio": pytest.approx(5 / 10),
    }


def test_a_model_that_never_says_yes_has_no_precision() -> None:
    figures = yes_no_figures(["yes", "no"], ["no", "no"])
    assert (figures["precision"], figures["recall"], figures["f1"], figures["yes_ratio"]) == (None, 0, 0, 0)


def test_popes_own_file_is_one_record_a_line_whatever_its_name_says(tmp_path: Path) -> None:
    questions = read_pope(write(tmp_path / "coco_pope_popular.json", records(LABELS)))
    assert [(question.id, question.answer) for question in questions] == [(1, "yes"), (2, "no"), (3, "yes")]
    assert questions[0].images == ("1.jpg",)
    assert questions[0].turns[0].text == "<image>\nIs there a dog in the image?"
    assert questions[0].categories == ("popular",)


def test_a_folder_is_read_file_by_file(tmp_path: Path) -> None:
    for split in ("random", "adversarial"):
        write(tmp_path / f"coco_pope_{split}.json", records(LABELS))
    (tmp_path / "readme.txt").write_text("not a question")
    questions = read_pope(tmp_path)
    assert [question.id for question in questions][2:5] == ["adversarial-3", "random-1", "random-2"]
    assert {question.categories for question in questions} == {("adversarial",), ("random",)}


@pytest.mark.parametrize("folder", ["coco", "."])
def test_llavas_questions_take_their_labels_from_popes_files(tmp_path: Path, folder: str) -> None:
    write(tmp_path / folder / "coco_pope_random.json", records(["no", "yes"]))
    write(tmp_path / folder / "coco_pope_popular.json", records(["yes"]))
    asked = [("random", 1), ("popular", 1), ("random", 2)]
    lines = [
        {"question_id": 10 + place, "image": f"{number}.jpg", "text": "Is it?\nOne word.", "category": split}
        for place, (split, number) in enumerate(asked)
    ]
    questions = read_pope(write(tmp_path / "llava_pope_test.jsonl", lines))
    assert [(question.id, question.answer, question.categories) for question in questions] == [
        (10, "no", ("random",)),
        (11, "yes", ("popular",)),
        (12, "yes", ("random",)),
    ]
    lines[0]["image"] = "other.jpg"
    with pytest.raises(DataError, match=r"its 2 questions of 'random' and the 2 of .* are not about the same"):
        read_pope(write(tmp_path / "llava_pope_test.jsonl", lines))
    lines[0]["category"] = "adversarial"
    with pytest.raises(DataError, match=r"coco_pope_adversarial.json with those of 'adversarial' is missing"):
        read_pope(write(tmp_path / "llava_pope_test.jsonl", lines))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "maybe"}, "line 2: label: found 'maybe' \\(question 2\\); give 'yes' or 'no'"),
        ({"image": None}, "line 2: image: found 0 pictures"),
        ({"text": 3}, "line 2: text: found 3"),
    ],
)
def test_bad_records_are_named_with_their_line_and_field(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    lines = records(LABELS)
    lines[1] |= change
    with pytest.raises(DataError, match=message):
        read_pope(write(tmp_path / "coco_pope_random.json", lines))


def test_records_with_neither_label_nor_split_are_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "q.jsonl", [{"question_id": 1, "image": "a.jpg", "text": "Is it?"}])
    with pytest.raises(DataError, match="line 1 has neither label nor category"):
        read_pope(file)
