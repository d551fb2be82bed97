"""Shows that the commands do their work, and end with one message and code 2 on a user's error."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

TOOLS = Path(__file__).parents[3] / "tools"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"tool_{name}", TOOLS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_convert_exports_and_verifies(
    make: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["export", "--checkpoint", str(make("clip").checkpoint), "--output", str(tmp_path / "model")]
    assert load("convert").main([*arguments, "--dtype", "bfloat16", "--verify"]) == 0
    printed = capsys.readouterr().out
    assert "bfloat16; stage tune, step 10" in printed
    assert "verified" in printed
    assert (tmp_path / "model" / "model.safetensors").is_file()


def test_evaluate_prints_a_table_or_json(exported: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = {"question_id": 1, "image": "0.png", "text": "What?", "answer": "two", "category": "read"}
    (pictures / "q.jsonl").write_text(json.dumps(record))
    arguments = ["--model", str(exported), "--data", str(pictures / "q.jsonl"), "--max-new-tokens", "2"]
    assert load("evaluate").main(arguments) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[1].split()[:2] == ["all", "1"]
    assert "1 of 1 questions" in captured.err
    assert load("evaluate").main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["questions"] == 1


def test_generate_prints_one_answer(exported: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "--model",
        str(exported),
        "--image",
        str(pictures / "0.png"),
        "--prompt",
        "What digit is it?",
    ]
    assert load("generate").main([*arguments, "--max-new-tokens", "4"]) == 0
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("convert", ["export", "--checkpoint", "nowhere", "--output", "model"]),
        ("evaluate", ["--model", "nowhere", "--data", "nowhere.jsonl"]),
        ("generate", ["--model", "nowhere", "--image", "a.png", "--prompt", "What?"]),
    ],
)
def test_a_users_error_is_one_message_and_code_2(
    tool: str, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert load(tool).main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: nowhere")
