"""Shows that the commands answer and count, and end with one message and code 2 on a user's error."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from megatron_sts import evaluation
from tools import evaluate as evaluate_command
from tools import generate as generate_command


def test_evaluate_prints_a_table_or_json(exported: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = {"question_id": 1, "image": "0.png", "text": "What?", "answer": "two", "category": "read"}
    (pictures / "q.jsonl").write_text(json.dumps(record))
    arguments = ["--model", str(exported), "--data", str(pictures / "q.jsonl"), "--max-new-tokens", "2"]
    assert evaluate_command.main(arguments) == 0
    captured = capsys.readouterr()
    first, _, all_questions, _ = captured.out.splitlines()
    assert first == "format llava (its records have an answer), in float32"
    assert all_questions.split()[:2] == ["all", "1"]
    assert "1 of 1 questions" in captured.err
    assert evaluate_command.main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["questions"] == 1


def test_evaluate_says_what_an_interruption_leaves(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    tool = evaluate_command
    monkeypatch.setattr(evaluation, "evaluate", stop)
    arguments = ["--model", "model", "--data", "q.jsonl"]
    assert tool.main([*arguments, "--predictions", "a.jsonl"]) == 130
    assert "answers so far are in a.jsonl; the same command goes on" in capsys.readouterr().err
    assert tool.main(arguments) == 130
    assert "nothing is kept" in capsys.readouterr().err


def test_generate_prints_one_answer_a_picture(
    exported: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", str(exported), "--prompt", "What digit is it?", "--max-new-tokens", "8", "--image"]
    files = [str(pictures / f"{number}.png") for number in range(3)]
    answers = []
    for file in files:
        assert generate_command.main([*arguments, file]) == 0
        answers.append(capsys.readouterr().out.strip())
    assert all(answers) and len(set(answers)) > 1
    assert generate_command.main([*arguments, *files]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{file}: {answer}" for file, answer in zip(files, answers, strict=True)
    ]
    assert generate_command.main([*arguments, *files, "--json"]) == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["image"], line["text"]) for line in printed] == list(zip(files, answers, strict=True))


def test_generate_answers_without_a_picture(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate_command.main(["--model", str(exported), "--prompt", "What?", "--max-new-tokens", "4"]) == 0
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize(
    ("tool", "arguments", "message"),
    [
        (evaluate_command, ["--model", "nowhere", "--data", "nowhere.jsonl"], "nowhere"),
        (generate_command, ["--model", "nowhere", "--prompt", "What?"], "nowhere: no config.json"),
        # Before the model, whose loading may take minutes.
        (
            generate_command,
            ["--model", "nowhere", "--image", "a.png", "--prompt", "What?"],
            "--image a.png: no such file",
        ),
    ],
)
def test_a_users_error_is_one_message_and_code_2(
    tool: ModuleType, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"error: {message}")
