"""Questions with known answers: LLaVA's question files, and conversations in LLaVA json."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_sts.data import IMAGE_TOKEN, Turn, read_llava_json
from megatron_sts.errors import DataError

_SHOWN_PROBLEMS = 10


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, and what is right.

    Contract: as in `Sample`, the human turns hold one `<image>` for each path in `images`; the last is human.
    """

    id: str | int
    images: tuple[str, ...]
    """Paths relative to the image folder."""
    turns: tuple[Turn, ...]
    answer: str
    category: str | None = None

    @property
    def text(self) -> str:
        """The question itself, without the marks of its pictures."""
        return self.turns[-1].text.replace(IMAGE_TOKEN, "").strip()


def read_questions(path: Path) -> list[Question]:
    """The questions of a `.json` (one list) or `.jsonl` file (one record a line).

    A record is either {question_id, image, text, answer, category}, where image and category may be absent,
    or a conversation in LLaVA json: then each of its human turns is a question, asked after the turns before
    it with their right answers.

    Raises:
        DataError: the file cannot be read, or some records are bad; the message lists the first ten.
    """
    records = _read_records(path)
    if isinstance(records[0], dict) and "conversations" in records[0]:
        return _from_conversations(path)
    questions, problems = [], []
    for number, record in enumerate(records):
        try:
            questions.append(_question(record))
        except ValueError as problem:
            problems.append(f"  record {number}: {problem}")
    if problems:
        raise DataError(
            f"{path}: {len(problems)} of {len(records)} questions cannot be used:\n"
            + "\n".join(problems[:_SHOWN_PROBLEMS])
        )
    return questions


def _read_records(path: Path) -> list[Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); give a .json or .jsonl file") from error
    try:
        if path.suffix == ".jsonl":
            records = [json.loads(line) for line in text.split("\n") if line.strip()]
        else:
            records = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(
            f"{path}: is not valid json ({error}); write one list (.json) or one record a line (.jsonl)"
        ) from error
    if not isinstance(records, list) or not records:
        raise DataError(f"{path}: holds no list of questions; give records with question_id, text and answer")
    return records


def _question(record: Any) -> Question:
    if not isinstance(record, dict):
        raise ValueError(f"found a {type(record).__name__}; give an object with question_id, text and answer")
    identifier = record.get("question_id")
    if not isinstance(identifier, str | int):
        raise ValueError(f"question_id: found {identifier!r}; give a string or a number")
    for field in ("text", "answer"):
        if not isinstance(record.get(field), str) or not record[field].strip():
            raise ValueError(f"{field}: found {record.get(field)!r} (question {identifier!r}); give its text")
    images = record.get("image") or []
    images = images if isinstance(images, list) else [images]
    if not all(isinstance(image, str) and image for image in images):
        raise ValueError(f"image: found {images!r} (question {identifier!r}); give a path or a list of paths")
    category = record.get("category")
    if category is not None and not isinstance(category, str):
        raise ValueError(f"category: found {category!r} (question {identifier!r}); give a string or none")
    text = record["text"].replace(IMAGE_TOKEN, "").strip()
    asked = "\n".join([*[IMAGE_TOKEN] * len(images), text])
    return Question(identifier, tuple(images), (Turn("human", asked),), record["answer"], category)


def _from_conversations(path: Path) -> list[Question]:
    questions = []
    for sample in read_llava_json(path):
        for position, turn in enumerate(sample.turns):
            if turn.role == "assistant":
                before = sample.turns[:position]
                shown = sum(earlier.text.count(IMAGE_TOKEN) for earlier in before)
                name = f"{sample.id}-{position // 2}"
                questions.append(Question(name, sample.images[:shown], before, turn.text))
    return questions
