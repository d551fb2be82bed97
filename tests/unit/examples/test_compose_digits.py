"""Shows that the quickstart's images are reproducible, its splits disjoint and its answers true."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[3] / "examples" / "quickstart"))
import compose_digits

GRID = ((5, 0, 5), (3, 8, 1))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("digits")
    compose_digits.write_dataset(output, {"train": 24, "validation": 3, "test": 6}, questions=6, seed=7)
    return output


def test_an_image_is_a_pure_function_of_split_index_and_seed():
    first = compose_digits.compose("train", 3, seed=7, questions=6)
    compose_digits.compose("train", 4, seed=7, questions=6)
    again = compose_digits.compose("train", 3, seed=7, questions=6)
    assert again.scans == first.scans and again.questions == first.questions
    assert np.array_equal(compose_digits.render(again), compose_digits.render(first))
    for other in (("train", 4, 7), ("test", 3, 7), ("train", 3, 8)):
        assert not np.array_equal(
            compose_digits.render(compose_digits.compose(*other, questions=6)), compose_digits.render(first)
        )


def test_splits_share_no_scan():
    used = {
        split: {
            number
            for index in range(300)
            for row in compose_digits.compose(split, index, seed=7, questions=1).scans
            for number in row
        }
        for split in ("train", "validation", "test")
    }
    assert max(used["train"]) < min(used["validation"]) and max(used["validation"]) < min(used["test"])
    assert len(used["test"]) > 150


def test_grid_holds_the_labels_of_its_scans():
    labels = compose_digits.scans()[1]
    composition = compose_digits.compose("test", 0, seed=7, questions=6)
    assert composition.grid == tuple(tuple(labels[number] for number in row) for row in composition.scans)


def test_digits_keep_to_their_own_cells():
    composition = next(
        p
        for p in (compose_digits.compose("train", i, 7, 1) for i in range(50))
        if (len(p.grid), len(p.grid[0])) == (2, 3)
    )
    pixels = compose_digits.render(composition).astype(int)
    paper = pixels[0, 0]
    marked = (np.abs(pixels - paper).max(axis=-1) > 40).reshape(3, 28, 3, 28).any(axis=(1, 3))
    assert marked.tolist() == [[True] * 3, [True] * 3, [False] * 3]
    borders = np.abs(pixels - paper).max(axis=-1)[[0, 1, 26, 27, 28, 29]]
    assert borders.max() == 0


def test_caption_spells_the_grid_row_by_row():
    assert compose_digits.caption(GRID) == "Row one: five zero five. Row two: three eight one."


@pytest.mark.parametrize(
    ("category", "expected"),
    [
        (
            "read",
            {
                "Which digit is in row one, column two?": "zero",
                "Which digit is in row two, column three?": "one",
            },
        ),
        (
            "row",
            {
                "Which digits are in row one?": "five zero five",
                "Which digits are in row two?": "three eight one",
            },
        ),
        (
            "column",
            {
                "Which digits are in column one?": "five three",
                "Which digits are in column three?": "five one",
            },
        ),
        ("total", {"How many digits are there in total?": "six"}),
    ],
)
def test_answers_are_true_of_the_grid(category: str, expected: dict[str, str]):
    rng = np.random.default_rng(0)
    asked = [compose_digits.ask(GRID, category, rng) for _ in range(300)]
    answers = {question.text: question.answer for question in asked}
    assert {text: answers[text] for text in expected} == expected
    assert {question.category for question in asked} == {category}


def test_an_image_is_asked_no_question_twice_and_read_is_asked_most():
    compositions = [compose_digits.compose("test", index, seed=7, questions=6) for index in range(100)]
    for composition in compositions:
        assert len({question.text for question in composition.questions}) == 6
    categories = [question.category for composition in compositions for question in composition.questions]
    counts = {category: categories.count(category) for category in compose_digits.QUESTION_MIXTURE}
    assert max(counts, key=lambda category: counts[category]) == "read"
    assert all(count > 0 for count in counts.values())


def test_files_agree_with_the_images(dataset: Path):
    composition = compose_digits.compose("train", 5, seed=7, questions=6)
    caption = compose_digits.caption(composition.grid)
    pretrain, align, tune = (
        json.loads((dataset / f"{name}.json").read_text()) for name in ("pretrain", "align", "tune")
    )
    assert len(pretrain) == len(align) == 24 and len(tune) == 24 * 6
    assert align[5] == {
        "id": "align-000005",
        "image": "images/train/000005.png",
        "conversations": [
            {"from": "human", "value": "<image>\nDescribe the image."},
            {"from": "gpt", "value": caption},
        ],
    }
    for each, question in zip(tune[30:36], composition.questions, strict=True):
        assert [turn["value"] for turn in each["conversations"]] == [f"<image>\n{question.text}", question.answer]
        assert each["image"] == align[5]["image"]
    assert len({each["id"] for each in tune}) == len(tune)
    assert "image" not in pretrain[5] and "<image>" not in json.dumps(pretrain)
    # Every second record is asked at once; the others are captioned first.
    written = compose_digits.written_image(composition.grid, columns=6)
    assert [turn["value"] for turn in pretrain[5]["conversations"]][:2] == [
        f"{written}\n{composition.questions[0].text}",
        composition.questions[0].answer,
    ]
    assert pretrain[4]["conversations"][0]["value"].endswith("\nDescribe the image.")
    with Image.open(dataset / align[5]["image"]) as image:
        assert np.array_equal(np.asarray(image), compose_digits.render(composition))


def test_test_questions_and_cells_are_those_of_the_test_images(dataset: Path):
    rows = [json.loads(line) for line in (dataset / "test_questions.jsonl").read_text().splitlines()]
    assert len(rows) == 36 and len({row["question_id"] for row in rows}) == 36
    composition = compose_digits.compose("test", 2, seed=7, questions=6)
    of_composition = [row for row in rows if row["image"] == "images/test/000002.png"]
    assert [(row["text"], row["answer"], row["category"]) for row in of_composition] == [
        (question.text, question.answer, question.category) for question in composition.questions
    ]
    with np.load(dataset / "tiles.npz") as cells:
        assert cells["train"].shape == (24, 9)
        assert np.array_equal(cells["test"][2], compose_digits.cell_labels(composition.grid))


def test_cells_outside_the_grid_are_blank():
    assert compose_digits.cell_labels(((1, 2), (3, 4))).tolist() == [1, 2, 10, 3, 4, 10, 10, 10, 10]


def test_more_questions_than_a_grid_has_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        compose_digits.main(["--output", str(tmp_path), "--questions", "9"])
    assert "--questions from 1 to 8" in capsys.readouterr().err


def test_written_image_has_the_words_of_its_patches_row_by_row():
    whole = ["five", "five", "zero", "zero", "blank", "blank", "five", "five", "zero", "zero", "blank", "blank"]
    rest = ["two", "two", "nine", "nine", "blank", "blank", "two", "two", "nine", "nine", "blank", "blank"]
    assert compose_digits.written_image(((5, 0), (2, 9)), columns=6).split() == [*whole, *rest, *["blank"] * 12]
    # Every second word of a line.
    half = compose_digits.written_image(((5, 0), (2, 9)), columns=3).split()
    assert half == [*whole, *rest, *["blank"] * 12][::2]
