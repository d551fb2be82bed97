"""POPE (arXiv 2305.10355): does the model say of an object that it is in the picture when it is not?

Every question is answered by yes or no; the objects that are not there are random ones, popular ones, or
adversarial ones (often seen together with what is there). Files as POPE publishes them, `coco_pope_random.json`
and its like, or LLaVA's `llava_pope_test.jsonl`, whose labels are in those files.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_sts.data.sample import RecordError
from megatron_sts.errors import DataError, shown
from megatron_sts.evaluation.questions import Question, asked, image_paths, question_id, text_of
from megatron_sts.evaluation.records import Record, make_all, read_records

INSTRUCTION = "Answer the question using a single word or phrase."
"""What LLaVA-1.5 asks for below each question."""

_SPLIT = re.compile(r".*_pope_(\w+)\.jsonl?")
_NEGATIVE_WORDS = {"No", "not", "no"}


def read_pope(path: Path) -> list[Question]:
    """The questions of one of POPE's files, of a folder of them, or of LLaVA's file with the folder `coco` beside it.

    A question's category is its split; in a folder, where each file counts its questions from 1, its id begins
    with the split.

    Raises:
        DataError: a file cannot be read, some records are bad, or LLaVA's questions and the labels do not match.
    """
    if path.is_dir():
        return [question for file in pope_files(path) for question in _labelled(file, read_records(file), named=True)]
    records = read_records(path)
    if all(isinstance(record.value, dict) and "label" not in record.value for record in records):
        return _of_llava(path, records)
    return _labelled(path, records, named=False)


def pope_files(folder: Path) -> list[Path]:
    """POPE's files in a folder, by name."""
    return sorted(file for file in folder.iterdir() if _SPLIT.fullmatch(file.name))


def said_yes_or_no(text: str) -> str:
    """What an answer says, by POPE's own rule.

    In the first sentence, commas left out: `no` where one of the words No, not or no stands in it, else `yes`.
    (evaluate.py of POPE, eval_pope.py of LLaVA.)
    """
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if _NEGATIVE_WORDS.intersection(words) else "yes"


def yes_no_figures(labels: Sequence[str], found: Sequence[str]) -> dict[str, Any]:
    """POPE's figures, yes being the positive answer.

    Returns:
        true_positives, false_positives, true_negatives, false_negatives; precision = TP / (TP + FP), recall =
        TP / (TP + FN), f1 = 2 TP / (2 TP + FP + FN), yes_ratio = (TP + FP) / all. None where there is nothing
        to divide by.
    """
    pairs = list(zip(labels, found, strict=True))
    hits, false_alarms = pairs.count(("yes", "yes")), pairs.count(("no", "yes"))
    misses, rejections = pairs.count(("yes", "no")), pairs.count(("no", "no"))
    return {
        "true_positives": hits,
        "false_positives": false_alarms,
        "true_negatives": rejections,
        "false_negatives": misses,
        "precision": _share(hits, hits + false_alarms),
        "recall": _share(hits, hits + misses),
        "f1": _share(2 * hits, 2 * hits + false_alarms + misses),
        "yes_ratio": _share(hits + false_alarms, len(pairs)),
    }


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _labelled(path: Path, records: Sequence[Record], named: bool) -> list[Question]:
    match = _SPLIT.fullmatch(path.name)
    split = match[1] if match else None

    def question(record: Any) -> Question:
        identifier = question_id(record)
        category = record.get("category") or split
        name = f"{split}-{identifier}" if named else identifier
        return _question(record, name, category, _label(record))

    return make_all(path, records, question, lambda made: made.id)


def _question(record: dict[str, Any], name: str | int, category: Any, label: str) -> Question:
    images = image_paths(record)
    if len(images) != 1:
        raise RecordError(f"image: found {len(images)} pictures (question {shown(name)}); a POPE question has one")
    return Question(
        name, images, asked(text_of(record, "text"), images), label, () if category is None else (str(category),)
    )


def _label(record: dict[str, Any]) -> str:
    label = record.get("label")
    if label not in ("yes", "no"):
        raise RecordError(
            f"label: found {shown(label)} (question {shown(record.get('question_id'))}); give 'yes' or 'no'"
        )
    return str(label)


def _of_llava(path: Path, records: Sequence[Record]) -> list[Question]:
    """LLaVA's questions; each split's labels stand in POPE's own file of the split, in the same order."""
    by_split: dict[str, list[str]] = {}
    for record in records:
        split = record.value.get("category")
        if not isinstance(split, str):
            raise DataError(
                f"{path}: {record.place} has neither label nor category; give POPE's own file, or LLaVA's, whose "
                "category names the file with its labels"
            )
        by_split.setdefault(split, []).append(str(record.value.get("image")))
    labels = {split: iter(_labels(path, split, pictures)) for split, pictures in by_split.items()}

    def question(record: Any) -> Question:
        split = record["category"]
        return _question(record, question_id(record), split, next(labels[split]))

    return make_all(path, records, question, lambda made: made.id)


def _labels(path: Path, split: str, pictures: Sequence[str]) -> list[str]:
    folder = path.parent / "coco" if (path.parent / "coco").is_dir() else path.parent
    file = folder / f"coco_pope_{split}.json"
    if not file.is_file():
        raise DataError(f"{path}: has no labels, and {file} with those of '{split}' is missing; add POPE's file")
    labelled = _labelled(file, read_records(file), named=False)
    if [question.images[0] for question in labelled] != list(pictures):
        raise DataError(
            f"{path}: its {len(pictures)} questions of '{split}' and the {len(labelled)} of {file} are not about "
            "the same pictures in the same order; give the two files of one release"
        )
    return [question.answer for question in labelled]
