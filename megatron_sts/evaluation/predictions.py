"""The file of a model's answers, in LLaVA's answer format: a line for every question as soon as it is answered.

What a line's metadata says of its making (model, questions, dtype, ...) lets an interrupted evaluation go on, and
no other evaluation write into the file.
"""

import json
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from megatron_sts.data import IMAGE_TOKEN
from megatron_sts.errors import DataError, shown
from megatron_sts.evaluation.questions import Question


class Predictions:
    """The answers of one evaluation, in memory and, where a path is given, in a file."""

    def __init__(
        self,
        path: Path | None,
        model_id: str,
        questions: Sequence[Question],
        made_by: Mapping[str, str | int],
        marks_images: bool = False,
    ) -> None:
        """Takes over the answers that the file holds.

        Args:
            model_id: the model's name in the file.
            questions: all of them, with distinct ids.
            made_by: what the answers depend on.
            marks_images: whether the prompt begins with an `<image>` for each picture.

        Raises:
            DataError: the file cannot be read, or holds answers that were made otherwise.
        """
        self.answers: dict[str | int, str] = {}
        self._path, self._model_id, self._made_by = path, model_id, dict(made_by)
        self._questions = {question.id: question for question in questions}
        self._marks_images = marks_images
        self._file: TextIO | None = None
        if path is not None and path.exists():
            self._take_over(path)

    def __enter__(self) -> Self:
        if self._path is not None:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                # Again from what was read: the line that a killed evaluation was writing is gone.
                self._write_all(self._path)
                self._file = self._path.open("a", encoding="utf-8")
            except OSError as error:
                raise self._cannot_be_written(error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    @property
    def unanswered(self) -> list[Question]:
        """The questions that are still to be asked, in order."""
        return [question for question in self._questions.values() if question.id not in self.answers]

    def add(self, question: Question, answer: str) -> None:
        """Take in an answer and write it down."""
        self.answers[question.id] = answer
        if self._file is not None:
            try:
                self._file.write(self._line(question, answer, {}))
                self._file.flush()
            except OSError as error:
                raise self._cannot_be_written(error) from error

    def finish(self, found: Mapping[str | int, str | None], correct: Mapping[str | int, bool]) -> None:
        """Write the file in the order of the questions, with what each answer says and whether it is right."""
        if self._path is not None:
            scores = {name: {"found": found[name], "correct": correct[name]} for name in found}
            try:
                self._write_all(self._path, scores)
            except OSError as error:
                raise self._cannot_be_written(error) from error

    def _take_over(self, path: Path) -> None:
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: cannot be read ({error}); give another --predictions") from error
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    record = json.loads(line)
                    name, text, made_by = record["question_id"], record["text"], record["metadata"]["made_by"]
                except (ValueError, LookupError, TypeError) as error:
                    if number == len(lines):
                        # No newline behind it: the evaluation was killed while it wrote this line.
                        break
                    raise DataError(
                        f"{path}: line {number} is no answer of an evaluation ({type(error).__name__}: {error}); "
                        "give another --predictions"
                    ) from error
                self._check(path, number, name, made_by)
                self.answers[name] = str(text)

    def _check(self, path: Path, number: int, name: Any, made_by: dict[str, Any]) -> None:
        differing = [
            f"{key} {shown(made_by.get(key))} instead of {value!r}"
            for key, value in self._made_by.items()
            if made_by.get(key) != value
        ]
        if differing or name not in self._questions:
            reason = ", ".join(differing) or f"the question {shown(name)}, which is not asked"
            raise DataError(
                f"{path}: line {number} was made by another evaluation: {reason}; give another --predictions, or "
                "remove the file"
            )

    def _write_all(self, path: Path, scores: Mapping[str | int, dict[str, Any]] | None = None) -> None:
        temporary = path.with_name(f".{path.name}.new")
        with temporary.open("w", encoding="utf-8") as file:
            for question in self._questions.values():
                if question.id in self.answers:
                    more = scores[question.id] if scores else {}
                    file.write(self._line(question, self.answers[question.id], more))
        os.replace(temporary, path)

    def _line(self, question: Question, answer: str, scores: dict[str, Any]) -> str:
        prompt = question.text
        if self._marks_images:
            prompt = "\n".join([*[IMAGE_TOKEN] * len(question.images), prompt])
        record = {
            "question_id": question.id,
            "prompt": prompt,
            "text": answer,
            "answer_id": uuid.uuid5(uuid.NAMESPACE_URL, f"{self._model_id}/{question.id}").hex,
            "model_id": self._model_id,
            "metadata": {
                "categories": list(question.categories),
                "answer": question.answer,
                **scores,
                "made_by": self._made_by,
            },
        }
        return json.dumps(record, ensure_ascii=False) + "\n"

    def _cannot_be_written(self, error: OSError) -> DataError:
        return DataError(f"{self._path}: cannot be written ({error}); give another --predictions")
