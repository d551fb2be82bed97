"""Accuracy of an exported model on questions with known answers."""

import os
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any

from megatron_sts.data.pictures import resolve_image
from megatron_sts.errors import ConversionError, DataError, shown_path
from megatron_sts.evaluation.fingerprint import model_fingerprint, questions_fingerprint
from megatron_sts.evaluation.formats import FORMATS, Format, detect_format
from megatron_sts.evaluation.generate import Generator, Progress, Request, choose_device, choose_dtype
from megatron_sts.evaluation.predictions import Predictions
from megatron_sts.evaluation.questions import Question
from megatron_sts.evaluation.score import bootstrap_interval

Predictor = Callable[[Sequence[Question]], Iterable[tuple[int, str]]]
"""Answers questions: the position of each with its answer, in any order, as soon as it is there."""

_SHOWN_PROBLEMS = 10


def evaluate(
    model_dir: Path,
    data: Path,
    images: Path | None = None,
    predictions: Path | None = None,
    predictor: Predictor | None = None,
    format_name: str | None = None,
    split: str = "test",
    instruction: str | None = None,
    device: str | None = None,
    dtype: str = "auto",
    max_new_tokens: int = 128,
    batch_size: int = 64,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Ask every question, compare, and count.

    The questions, their pictures and the file of answers are checked before the model is loaded.

    Args:
        data: a file or folder of questions, see `formats.py`.
        images: folder that the questions' pictures are relative to; None: the format's own place beside `data`.
        predictions: file of the answers (jsonl). Those that it holds already are not asked for again.
        predictor: answers the questions instead of the model.
        format_name: a key of FORMATS; None: as `detect_format` finds.
        split: of ScienceQA.
        instruction: last line of every question; None: the format's.
        device, dtype: as `choose_device` and `choose_dtype` take them.
        seed: of the bootstrap.

    Returns:
        model, data, format, format_reason, instruction, dtype; questions, pictures, correct, accuracy,
        interval_95 (by picture) and the format's own figures; by_category with the same for every category.
        Plain values, fit for json.
    Raises:
        ConversionError: `model_dir` holds no exported model.
        DataError: the questions, a picture or the file of answers cannot be used.
        ConfigError: the device or the dtype cannot be used.
    """
    if not (model_dir / "config.json").is_file() and predictor is None:
        raise ConversionError(
            f"{model_dir}: no config.json, so no exported model; make one with tools/convert.py export"
        )
    name, reason = (format_name, "asked for") if format_name else detect_format(data)
    form = FORMATS[name]
    instruction = form.instruction if instruction is None else instruction
    questions = [question.with_instruction(instruction) for question in form.read(data, split)]
    if predictor is None:
        device = choose_device(device)
        dtype = choose_dtype(device, dtype)
        images = images or form.image_folder(data, split)
        check_pictures(questions, images)

    made_by: dict[str, str | int] = {"dtype": dtype, "max_new_tokens": max_new_tokens}
    if predictions is not None:
        made_by |= {"model": model_fingerprint(model_dir), "questions": questions_fingerprint(questions)}
    with Predictions(predictions, model_dir.resolve().name, questions, made_by, form.marks_images) as held:
        if progress is not None:
            progress(len(held.answers), len(questions))
        if held.unanswered:
            if predictor is None:
                assert images is not None
                predictor = _model_predictor(Generator(model_dir, device, dtype), images, max_new_tokens, batch_size)
            _ask(held, predictor, progress)
        found = {question.id: form.understood(held.answers[question.id], question) for question in questions}
        correct = {question.id: found[question.id] == form.right(question) for question in questions}
        held.finish(found, correct)
    described = {"format": name, "format_reason": reason, "instruction": instruction, "dtype": dtype}
    return {"model": str(model_dir), "data": str(data), **described, **_count(form, questions, found, correct, seed)}


def _ask(held: Predictions, predictor: Predictor, progress: Progress | None) -> None:
    left = held.unanswered
    total = len(held.answers) + len(left)
    for position, answer in predictor(left):
        held.add(left[position], answer)
        if progress is not None:
            progress(len(held.answers), total)
    assert not held.unanswered


def check_pictures(questions: Sequence[Question], root: Path) -> None:
    """Raise DataError, with the first ten, where pictures of the questions are not below `root`."""
    base, missing = root.resolve(), []
    for picture in dict.fromkeys(image for question in questions for image in question.images):
        # os.path, because pathlib raises on some paths (too long, no permission) where os.path says no.
        if not os.path.isfile(resolve_image(base, picture)):
            missing.append(picture)
    if missing:
        first = ", ".join(map(shown_path, missing[:_SHOWN_PROBLEMS]))
        raise DataError(
            f"{root}: {len(missing)} pictures of the questions are not there: {first}; give their folder with --images"
        )


def format_table(result: dict[str, Any]) -> str:
    """What `evaluate` returns, as a table for a terminal."""
    columns = FORMATS[result["format"]].columns
    rows = [("all", result), *result["by_category"].items()]
    width = max(len(name) for name, _ in rows)
    headings = "".join(f"  {heading:>10}" for heading in columns.values())
    lines = [f"{'':{width}}  questions  accuracy{headings}  95% interval by picture"]
    for name, figures in rows:
        low, high = figures["interval_95"]
        more = "".join(f"  {_cell(figures[key]):>10}" for key in columns)
        share = f"{figures['accuracy']:8.1%}{more}  {low:.1%} - {high:.1%}"
        lines.append(f"{name:{width}}  {figures['questions']:9d}  {share}")
    return "\n".join(lines)


def _cell(value: float | int | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.1%}"


def _model_predictor(generator: Generator, images: Path, max_new_tokens: int, batch_size: int) -> Predictor:
    def predict(questions: Sequence[Question]) -> Iterable[tuple[int, str]]:
        requests = [
            Request(generator.prompt(question.turns, question.system), question.images) for question in questions
        ]
        return generator.answers(requests, images, max_new_tokens, batch_size)

    return predict


def _count(
    form: Format,
    questions: Sequence[Question],
    found: dict[str | int, str | None],
    correct: dict[str | int, bool],
    seed: int,
) -> dict[str, Any]:
    """The figures over all questions, and by category."""

    def figures(group: Sequence[Question]) -> dict[str, Any]:
        # A question without a picture stands for itself.
        pictures: list[Hashable] = [question.images or ("question", question.id) for question in group]
        hits = [correct[question.id] for question in group]
        return {
            "questions": len(group),
            "pictures": len(set(pictures)),
            "correct": sum(hits),
            "accuracy": sum(hits) / len(hits),
            **form.figures(group, [found[question.id] for question in group]),
            "interval_95": list(bootstrap_interval(hits, pictures, seed)),
        }

    categories = sorted({category for question in questions for category in question.categories})
    by_category = {
        category: figures([question for question in questions if category in question.categories])
        for category in categories
    }
    return {**figures(questions), "by_category": by_category}
