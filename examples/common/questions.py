"""Questions about images: the records to train on, the rows to evaluate with, and what answering unseen scores."""

import collections
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

IMAGE_LINE = "<image>\n"


@dataclass(frozen=True)
class Question:
    """What is asked about an image, the answer, and the kind of question."""

    text: str
    answer: str
    category: str


def conversation(exchanges: Iterable[tuple[str, str]], has_image: bool = True) -> list[dict[str, str]]:
    """LLaVA's `conversations` of pairs of question and answer, the image before the first question."""
    turns = [
        {"from": speaker, "value": value}
        for exchange in exchanges
        for speaker, value in zip(("human", "gpt"), exchange, strict=True)
    ]
    if has_image:
        turns[0]["value"] = IMAGE_LINE + turns[0]["value"]
    return turns


def record(identifier: str, image: str, exchanges: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """A record of LLaVA json. image: path below the folder of images."""
    return {"id": identifier, "image": image, "conversations": conversation(exchanges)}


def question_rows(identifier: str, image: str, questions: Sequence[Question]) -> list[dict[str, str]]:
    """Rows of the jsonl that tools/evaluate.py reads, with the answers."""
    return [
        {
            "question_id": f"{identifier}-{number}",
            "image": image,
            "text": question.text,
            "answer": question.answer,
            "category": question.category,
        }
        for number, question in enumerate(questions)
    ]


def write_records(file: Path, records: Iterable[dict[str, Any]]) -> None:
    """Write LLaVA json."""
    file.write_text(json.dumps(list(records)), encoding="utf-8")


def write_rows(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write jsonl."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The rows of a jsonl file."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def question_only_accuracy(train: Sequence[dict[str, Any]], test: Sequence[dict[str, Any]]) -> dict[str, float]:
    """What answering without looking scores: the baseline that a model which sees must beat.

    Each test question gets the most frequent training answer to the same text.

    Args:
        train: records of LLaVA json.
        test: rows of jsonl, as `question_rows` makes them.
    Returns:
        Share of exact answers, 0..1, under "overall" and under each category that occurs.
    """
    answers: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for sample in train:
        values = [turn["value"].removeprefix(IMAGE_LINE) for turn in sample["conversations"]]
        for text, answer in zip(values[::2], values[1::2], strict=True):
            answers[text][answer] += 1
    outcomes: dict[str, list[bool]] = collections.defaultdict(list)
    for row in test:
        known = answers[row["text"]].most_common(1)
        is_right = bool(known) and known[0][0] == row["answer"]
        outcomes["overall"].append(is_right)
        outcomes[row["category"]].append(is_right)
    return {category: sum(values) / len(values) for category, values in outcomes.items()}
