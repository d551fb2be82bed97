"""Shows that the SmolLM2 example's images are reproducible, its splits disjoint and its answers true."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.unit.examples.test_smollm2_weights import example

images = example("compose_images")
from common.questions import question_only_accuracy


def test_an_image_is_a_pure_function_of_split_index_and_seed() -> None:
    one, again, other = (images.compose("train", index, 7)[0] for index in (3, 3, 4))
    assert one.scans == again.scans and np.array_equal(images.render(one), images.render(again))
    assert not np.array_equal(images.render(one), images.render(other))


def test_training_and_held_out_images_share_no_scan() -> None:
    train, validation, test = (
        {scan for index in range(300) for scan in images.compose(split, index, 7)[0].scans}
        for split in ("train", "validation", "test")
    )
    assert max(train) < min(validation | test)


@pytest.mark.parametrize("index", range(12))
def test_answers_are_what_is_drawn(index: int) -> None:
    composition, _ = images.compose("test", index, 7)
    pixels = images.render(composition).astype(float)
    answers = {question.text: question.answer for question in images.possible_questions(composition)}
    # The corners are paper; the darkest point of a digit is nearest to its ink.
    paper = min(images.PAPERS, key=lambda name: np.abs(pixels[0, 0] - images.PAPERS[name]).sum())
    assert answers["What color is the paper?"] == paper
    assert answers["How many digits are there?"] == images.NUMBER_WORDS[len(composition.scans)]
    sides = ("is the digit on the left", "is the digit on the right")
    for number, scan in enumerate(composition.scans):
        width = pixels.shape[1] // len(composition.scans)
        tile = pixels[:, number * width : (number + 1) * width]
        farthest = tile.reshape(-1, 3)[np.abs(tile - pixels[0, 0]).sum(-1).argmax()]
        ink = min(images.INKS, key=lambda name: np.abs(farthest - images.INKS[name]).sum())
        one = len(composition.scans) == 1
        assert answers["What color is the digit?" if one else f"What color {sides[number]}?"] == ink
        digit = images.NUMBER_WORDS[images.scans()[1][scan]]
        assert answers["Which digit is it?" if one else f"Which digit is on the {('left', 'right')[number]}?"] == digit


def test_the_files_are_llava_json_and_questions_with_a_baseline(tmp_path: Path) -> None:
    images.write_dataset(tmp_path, {"train": 40, "validation": 2, "test": 10}, questions=2, seed=7)
    for name, count, turns in (("align", 40, 2), ("tune", 40, 4), ("validation", 2, 4)):
        records = json.loads((tmp_path / f"{name}.json").read_text())
        assert len(records) == count
        for record in records:
            assert len(record["conversations"]) == turns and (tmp_path / record["image"]).is_file()
            assert record["conversations"][0]["value"].startswith("<image>\n")
            assert "<image>" not in record["conversations"][-1]["value"]
    rows = [json.loads(line) for line in (tmp_path / "test_questions.jsonl").read_text().splitlines()]
    assert len(rows) == 20 and len({row["question_id"] for row in rows}) == 20
    train = json.loads((tmp_path / "tune.json").read_text())
    assert 0.1 < question_only_accuracy(train, rows)["overall"] < 0.8
