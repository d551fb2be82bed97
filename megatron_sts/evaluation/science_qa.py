"""ScienceQA (arXiv 2209.09513): school questions with up to five options, about half of them with a picture.

Files as ScienceQA publishes them, `problems.json` and `pid_splits.json`, or LLaVA's question file
(`llava_test_CQM-A.json`) beside them.
"""

import re
from pathlib import Path
from typing import Any

from megatron_sts.data.sample import RecordError
from megatron_sts.errors import DataError, shown, shown_path
from megatron_sts.evaluation.questions import Question, asked
from megatron_sts.evaluation.records import Record, make_all, read_json, read_records

PROBLEMS_FILE, SPLITS_FILE = "problems.json", "pid_splits.json"
OPTIONS = "ABCDE"
INSTRUCTION = "Answer with the option's letter from the given choices directly."
"""What LLaVA-1.5 asks for below each question."""

_ALONE, _IN_FRONT = re.compile(r"\s*([A-E])\s*"), re.compile(r"([A-E])\. ")
_WITH_PERIOD, _WITHOUT = re.compile(r"The answer is ([A-E])\."), re.compile(r"The answer is ([A-E])")


def read_science_qa(path: Path, split: str = "test") -> list[Question]:
    """The questions of one split.

    Args:
        path: the folder with problems.json and pid_splits.json, one of the two, or LLaVA's question file beside
            them, whose wording is then asked; otherwise LLaVA-1.5's wording of multiple-choice questions.
        split: a key of pid_splits.json.

    Returns:
        The answer is a letter; the categories are those of ScienceQA's own evaluation (subject, context, grade).
    Raises:
        DataError: a file is missing or cannot be read, or a problem of the split is bad or not asked.
    """
    folder = path if path.is_dir() else path.parent
    problems, splits = read_json(folder / PROBLEMS_FILE), read_json(folder / SPLITS_FILE)
    if not isinstance(problems, dict) or not isinstance(splits, dict):
        raise DataError(f"{folder}: {PROBLEMS_FILE} and {SPLITS_FILE} must each hold one object; give ScienceQA's")
    if not isinstance(splits.get(split), list):
        raise DataError(f"{folder / SPLITS_FILE}: has no split '{split}'; choose from {shown_path(', '.join(splits))}")
    wording = None
    if not path.is_dir() and path.name not in (PROBLEMS_FILE, SPLITS_FILE):
        wording = _wording(path)
    chosen = [Record(f"problem {shown(name)}", (str(name), problems.get(str(name)))) for name in splits[split]]

    def question(named: tuple[str, Any]) -> Question:
        return _question(*named, split, wording)

    return make_all(folder / PROBLEMS_FILE, chosen, question, lambda made: made.id)


def option_letter(text: str, choices: int) -> str | None:
    """The option that an answer names, by LLaVA's rule (eval_science_qa.py); None where it names none.

    The answer is a letter alone, or begins with a letter, a period and a space, or holds "The answer is" and a
    letter (one with a period behind it comes first); a newline counts as ". ". Only the question's own options
    count.
    """
    text = text.replace("\n", ". ")
    match = _ALONE.fullmatch(text) or _IN_FRONT.match(text) or _WITH_PERIOD.search(text) or _WITHOUT.search(text)
    return match[1] if match and match[1] in OPTIONS[:choices] else None


def _wording(path: Path) -> dict[str, str]:
    """What LLaVA's question file asks, by problem."""

    def conversation(record: Any) -> tuple[str, str]:
        try:
            return str(record["id"]), str(record["conversations"][0]["value"])
        except (LookupError, TypeError) as error:
            raise RecordError(f"conversations: holds no first turn with a value ({error}); give LLaVA's file") from None

    return dict(make_all(path, read_records(path), conversation, lambda named: named[0]))


def _question(name: str, problem: Any, split: str, wording: dict[str, str] | None) -> Question:
    if not isinstance(problem, dict):
        raise RecordError(f"found {shown(problem)}; {PROBLEMS_FILE} must hold every problem of the split")
    choices, answer = problem.get("choices"), problem.get("answer")
    if not isinstance(choices, list) or not 1 <= len(choices) <= len(OPTIONS):
        raise RecordError(f"choices: found {shown(choices)}; give a list of 1 to {len(OPTIONS)} options")
    if not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise RecordError(f"answer: found {shown(answer)}; give the number of an option, from 0 to {len(choices) - 1}")
    if not isinstance(problem.get("question"), str):
        raise RecordError(f"question: found {shown(problem.get('question'))}; give its text")
    image = problem.get("image")
    if image is not None and not isinstance(image, str):
        raise RecordError(f"image: found {shown(image)}; give a file name or null")
    if wording is not None and name not in wording:
        raise RecordError("is not in the question file; give the question file of the same split")
    # Contract: ScienceQA keeps a problem's picture in a folder of its name; `image_folder` in formats.py ends there.
    images = (f"{name}/{image}",) if image else ()
    text = wording[name] if wording is not None else _multiple_choice(problem)
    return Question(
        name, images, asked(text, images), OPTIONS[answer], _categories(problem, bool(images)), len(choices)
    )


def _multiple_choice(problem: dict[str, Any]) -> str:
    context = (problem.get("hint") or "").strip()
    options = [f"{letter}. {choice}" for letter, choice in zip(OPTIONS, problem["choices"], strict=False)]
    return "\n".join([*([f"Context: {context}"] if context else []), problem["question"].strip(), *options])


def _categories(problem: dict[str, Any], has_image: bool) -> tuple[str, ...]:
    has_text = bool(problem.get("hint"))
    contexts = {"text context": has_text, "image": has_image, "no context": not has_text and not has_image}
    grade = re.fullmatch(r"grade(\d+)", str(problem.get("grade")))
    grades = [] if grade is None else ["grades 1-6" if int(grade[1]) <= 6 else "grades 7-12"]
    subject = problem.get("subject")
    return (*([str(subject)] if subject else []), *(name for name, holds in contexts.items() if holds), *grades)
