"""Questions with known answers: LLaVA's question files, and conversations in LLaVA json."""

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megatron_sts.data import IMAGE_TOKEN, Picture, Turn, read_samples
from megatron_sts.data.image_value import image_of
from megatron_sts.data.sample import RecordError
from megatron_sts.errors import DataError, shown
from megatron_sts.evaluation.records import make_all, read_records


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
    categories: tuple[str, ...] = ()
    """Groups of questions that it counts in, beside all of them."""
    choices: int = 0
    """Options there are to choose from; 0: none are given."""
    system: str | None = None
    """System prompt of the conversation; None: the model's own."""

    @property
    def text(self) -> str:
        """The question itself, without the marks of its pictures."""
        return self.turns[-1].text.replace(IMAGE_TOKEN, "").strip()

    def with_instruction(self, instruction: str) -> "Question":
        """The question with `instruction` as its last line; unchanged where that stands there already."""
        last = self.turns[-1]
        if not instruction or last.text.rstrip().endswith(instruction):
            return self
        return replace(self, turns=(*self.turns[:-1], replace(last, text=f"{last.text.rstrip()}\n{instruction}")))


def asked(text: str, images: tuple[str, ...]) -> tuple[Turn, ...]:
    """The one turn of a question about `images`, which stand before its text, one a line."""
    return (Turn("human", "\n".join([*[IMAGE_TOKEN] * len(images), text.replace(IMAGE_TOKEN, "").strip()])),)


def read_questions(path: Path) -> list[Question]:
    """The questions of a `.json` (one list) or `.jsonl` file (one record a line).

    A record is either {question_id, image, text, answer, category}, where image and category may be absent,
    or a conversation in LLaVA json: then each of its human turns is a question, asked after the turns before
    it with their right answers.

    Raises:
        DataError: the file cannot be read, or some records are bad; the message lists the first ten.
    """
    records = read_records(path)
    if isinstance(records[0].value, dict) and "conversations" in records[0].value:
        return _from_conversations(path)
    return make_all(path, records, _question, lambda question: question.id)


def _question(record: Any) -> Question:
    identifier = question_id(record)
    category = record.get("category")
    if category is not None and not isinstance(category, str):
        raise RecordError(f"category: found {shown(category)} (question {shown(identifier)}); give a string or none")
    images, text = image_paths(record), text_of(record, "text")
    categories = () if category is None else (category,)
    return Question(identifier, images, asked(text, images), text_of(record, "answer"), categories)


def question_id(record: Any) -> str | int:
    """The id of a question's record; RecordError where there is none."""
    if not isinstance(record, dict):
        raise RecordError(f"found a {type(record).__name__}; give an object with question_id, text and answer")
    identifier = record.get("question_id")
    if not isinstance(identifier, str | int):
        raise RecordError(f"question_id: found {shown(identifier)}; give a string or a number")
    return identifier


def text_of(record: dict[str, Any], field: str) -> str:
    """The text in a field of a question's record; RecordError where there is none."""
    text = record.get(field)
    if not isinstance(text, str) or not text.strip():
        raise RecordError(f"{field}: found {shown(text)} (question {shown(record.get('question_id'))}); give its text")
    return text


def image_paths(record: dict[str, Any]) -> tuple[str, ...]:
    """The pictures of a question's record; RecordError where they are no paths."""
    images = record.get("image") or []
    images = images if isinstance(images, list) else [images]
    if not all(isinstance(image, str) and image for image in images):
        raise RecordError(f"image: found {shown(images)}; give a path or a list of paths")
    paths = [image_of(("image",), image) for image in images]
    return tuple(_path(path, f"question {shown(record.get('question_id'))}") for path in paths)


def _path(picture: Picture, where: str) -> str:
    if not isinstance(picture, str):
        raise RecordError(f"{where}: {picture}; a question's image is a file: write it to one and give its path")
    return picture


def _from_conversations(path: Path) -> list[Question]:
    questions = []
    for sample in read_samples(path):
        for position, turn in enumerate(sample.turns):
            if turn.role == "assistant":
                before = sample.turns[:position]
                marks = sum(earlier.text.count(IMAGE_TOKEN) for earlier in before)
                name = f"{sample.id}-{position // 2}"
                images = tuple(_path(image, f"{path}: record {shown(sample.id)}") for image in sample.images[:marks])
                questions.append(Question(name, images, before, turn.text, system=sample.system))
    repeated = [name for name, count in Counter(question.id for question in questions).items() if count > 1]
    if repeated:
        raise DataError(
            f"{path}: id: {len(repeated)} questions have an id that stands in an earlier record too, such as "
            f"{shown(repeated[0])} (record id and number of the answer); make the ids of the records differ"
        )
    return questions
