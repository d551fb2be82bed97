"""Exact-match accuracy of an exported model on questions with known answers."""

import json
import uuid
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

from megatron_sts.errors import DataError
from megatron_sts.hf.generate import Generator, Progress, Request
from megatron_sts.hf.questions import Question, read_questions
from megatron_sts.hf.score import bootstrap_interval, is_correct

Predictor = Callable[[Sequence[Question]], Sequence[str]]
"""Answers every question, in order."""


def evaluate(
    model_dir: Path,
    questions: Path,
    images: Path | None = None,
    predictions: Path | None = None,
    predictor: Predictor | None = None,
    device: str | None = None,
    max_new_tokens: int = 64,
    batch_size: int = 64,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Ask every question, compare by exact match, and count.

    Args:
        questions: a file as `read_questions` takes it.
        images: folder that the questions' pictures are relative to; None: the folder of `questions`.
        predictions: where to write the answers, in LLaVA's answer format (jsonl).
        predictor: answers the questions instead of the model.
        seed: of the bootstrap.

    Returns:
        model, data, questions, pictures, correct, accuracy, interval_95 (by picture), and by_category with
        the same figures for every category. Plain values, fit for json.
    Raises:
        ConversionError: `model_dir` holds no exported model.
        DataError: the questions or a picture cannot be read.
    """
    asked = read_questions(questions)
    if predictor is None:
        predictor = _model_predictor(
            model_dir, images or questions.parent, device, max_new_tokens, batch_size, progress
        )
    answers = list(predictor(asked))
    assert len(answers) == len(asked)
    if predictions is not None:
        _write_predictions(predictions, model_dir, asked, answers)
    categories = sorted({question.category for question in asked if question.category is not None})
    correct = [is_correct(found, question.answer) for question, found in zip(asked, answers, strict=True)]
    return {
        "model": str(model_dir),
        "data": str(questions),
        **_figures(asked, correct, seed),
        "by_category": {
            category: _figures(
                [question for question in asked if question.category == category],
                [hit for question, hit in zip(asked, correct, strict=True) if question.category == category],
                seed,
            )
            for category in categories
        },
    }


def format_table(result: dict[str, Any]) -> str:
    """What `evaluate` returns, as a table for a terminal."""
    rows = [("all", result), *result["by_category"].items()]
    width = max(len(name) for name, _ in rows)
    lines = [f"{'':{width}}  questions  accuracy  95% interval by picture"]
    for name, figures in rows:
        low, high = figures["interval_95"]
        share = f"{figures['accuracy']:8.1%}  {low:.1%} - {high:.1%}"
        lines.append(f"{name:{width}}  {figures['questions']:9d}  {share}")
    return "\n".join(lines)


def _model_predictor(
    model_dir: Path,
    images: Path,
    device: str | None,
    max_new_tokens: int,
    batch_size: int,
    progress: Progress | None,
) -> Predictor:
    generator = Generator(model_dir, device)

    def predict(questions: Sequence[Question]) -> list[str]:
        requests = [Request(generator.prompt(question.turns), question.images) for question in questions]
        return generator.generate(requests, images, max_new_tokens, batch_size, progress)

    return predict


def _figures(questions: Sequence[Question], correct: Sequence[bool], seed: int) -> dict[str, Any]:
    # A question without a picture stands for itself.
    pictures: list[Hashable] = [question.images or ("question", question.id) for question in questions]
    low, high = bootstrap_interval(correct, pictures, seed)
    return {
        "questions": len(questions),
        "pictures": len(set(pictures)),
        "correct": sum(correct),
        "accuracy": sum(correct) / len(correct),
        "interval_95": [low, high],
    }


def _write_predictions(path: Path, model_dir: Path, questions: Sequence[Question], answers: Sequence[str]) -> None:
    model_id = model_dir.resolve().name
    lines = []
    for question, answer in zip(questions, answers, strict=True):
        record = {
            "question_id": question.id,
            "prompt": question.text,
            "text": answer,
            "answer_id": uuid.uuid5(uuid.NAMESPACE_URL, f"{model_id}/{question.id}").hex,
            "model_id": model_id,
            "metadata": {
                "category": question.category,
                "answer": question.answer,
                "correct": is_correct(answer, question.answer),
            },
        }
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(lines), encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error}); give another --predictions") from error
