"""The formats of questions that can be evaluated: how each is read, how answers are understood and counted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_sts.errors import DataError
from megatron_sts.evaluation import pope, science_qa
from megatron_sts.evaluation.questions import Question, read_questions
from megatron_sts.evaluation.records import read_records
from megatron_sts.evaluation.score import normalized


@dataclass(frozen=True)
class Format:
    """One format of questions."""

    read: Callable[[Path, str], list[Question]]
    """The questions of a file or folder; the second argument names ScienceQA's split, others ignore it."""
    understood: Callable[[str, Question], str | None]
    """What an answer says, comparable with what `right` gives; None: nothing that counts."""
    right: Callable[[Question], str]
    """The right answer."""
    figures: Callable[[Sequence[Question], Sequence[str | None]], dict[str, Any]]
    """Figures beside the accuracy."""
    columns: dict[str, str]
    """Those of the figures that the table shows, with their headings."""
    instruction: str
    """What is asked for below each question."""
    image_folder: Callable[[Path, str], Path]
    """Where the pictures are if no folder is given."""
    marks_images: bool = False
    """Whether the prompt in the predictions shows `<image>`, by which LLaVA's scorer knows questions with a picture."""


def _folder(path: Path) -> Path:
    return path if path.is_dir() else path.parent


FORMATS: dict[str, Format] = {
    "llava": Format(
        read=lambda path, split: read_questions(path),
        understood=lambda text, question: normalized(text),
        right=lambda question: normalized(question.answer),
        figures=lambda questions, found: {},
        columns={},
        instruction="",
        image_folder=lambda path, split: _folder(path),
    ),
    "pope": Format(
        read=lambda path, split: pope.read_pope(path),
        understood=lambda text, question: pope.said_yes_or_no(text),
        right=lambda question: question.answer,
        figures=lambda questions, found: pope.yes_no_figures(
            [question.answer for question in questions], [str(answer) for answer in found]
        ),
        columns={"precision": "precision", "recall": "recall", "f1": "F1", "yes_ratio": "yes"},
        instruction=pope.INSTRUCTION,
        image_folder=lambda path, split: _folder(path),
    ),
    "scienceqa": Format(
        read=science_qa.read_science_qa,
        understood=lambda text, question: science_qa.option_letter(text, question.choices),
        right=lambda question: question.answer,
        figures=lambda questions, found: {"unanswered": list(found).count(None)},
        columns={"unanswered": "unanswered"},
        instruction=science_qa.INSTRUCTION,
        image_folder=lambda path, split: _folder(path) / "images" / split,
        marks_images=True,
    ),
}


def detect_format(path: Path) -> tuple[str, str]:
    """The name of the format of a file or folder of questions, and why it is that.

    Raises DataError where nothing tells.
    """
    if path.is_dir():
        if pope.pope_files(path):
            return "pope", "the folder has files named *_pope_SPLIT.json"
        if (path / science_qa.PROBLEMS_FILE).is_file():
            return "scienceqa", f"the folder has {science_qa.PROBLEMS_FILE}"
        raise DataError(f"{path}: holds neither POPE's files nor {science_qa.PROBLEMS_FILE}; give a file of questions")
    if path.name in (science_qa.PROBLEMS_FILE, science_qa.SPLITS_FILE):
        return "scienceqa", "of the file's name"
    first = read_records(path)[0].value
    fields = set(first) if isinstance(first, dict) else set()
    if "label" in fields:
        return "pope", "its records have a label"
    if "conversations" in fields:
        if (path.parent / science_qa.PROBLEMS_FILE).is_file():
            return "scienceqa", f"its records are conversations and {science_qa.PROBLEMS_FILE} is beside it"
        return "llava", "its records are conversations"
    if "category" in fields and "answer" not in fields:
        return "pope", "its records have a category, and neither answer nor label"
    return "llava", "its records have an answer" if "answer" in fields else "nothing else fits"
