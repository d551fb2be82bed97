"""Shows that the commands do their work, and end with one message and code 2 on a user's error."""

import contextlib
import importlib.util
import io
import re
from pathlib import Path
from types import ModuleType

import pytest
from transformers import AutoProcessor

from megatron_sts.hf import ImportOptions, import_llava
from tests.ranks import run_ranks
from tests.unit.hf.sources import nothing

TOOLS = Path(__file__).parents[3] / "tools"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"tool_{name}", TOOLS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _in_a_rank(arguments: list[str]) -> tuple[int, str]:
    """Exit code and printed text of a conversion, in a process of its own, as `--verify` makes a process group."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = load("convert").main(arguments)
    return code, printed.getvalue()


@pytest.mark.parametrize(("dtype", "low", "high"), [("float32", 0.0, 1e-4), ("bfloat16", 1e-4, 1.0)])
def test_an_export_is_verified_against_its_checkpoint(
    exported: Path, tmp_path: Path, dtype: str, low: float, high: float
) -> None:
    """The logits of a cast differ by its rounding, which is printed and no error."""
    init = tmp_path / "init"
    import_llava(exported, init, ImportOptions(), nothing)
    arguments = ["export", "--checkpoint", str(init), "--output", str(tmp_path / "model"), "--dtype", dtype]
    ((code, printed),) = run_ranks(1, _in_a_rank, [*arguments, "--verify"])
    assert code == 0
    assert f"{dtype}; stage import, step 0" in printed
    assert "85 mapped, 2 carried, 0 fresh" in printed
    differ = re.search(r"differ by at most (\S+)", printed)
    assert differ is not None
    assert low <= float(differ[1]) <= high
    assert "What is in the picture?" in printed
    assert (tmp_path / "model" / "model.safetensors").is_file()


def test_convert_imports_and_exports_back(exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convert = load("convert")
    init, again = tmp_path / "init", tmp_path / "again"
    assert convert.main(["import", "--hf", str(exported), "--output", str(init)]) == 0
    assert f"model: {{init: {init}}}" in capsys.readouterr().out
    assert convert.main(["export", "--checkpoint", str(init), "--output", str(again)]) == 0
    assert (again / "model.safetensors").read_bytes() == (exported / "model.safetensors").read_bytes()
    assert AutoProcessor.from_pretrained(again).chat_template == AutoProcessor.from_pretrained(exported).chat_template


@pytest.mark.parametrize(
    "sources", [[], ["--vision", "a"], ["--hf", "a", "--language", "b"], ["--language", "a", "--megatron", "b"]]
)
def test_convert_says_which_sources_go_together(
    sources: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert load("convert").main(["import", *sources, "--output", str(tmp_path / "init")]) == 2
    assert "give --hf, or --vision with --language, or --vision with --megatron" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("convert", ["export", "--checkpoint", "nowhere", "--output", "model"]),
    ],
)
def test_a_users_error_is_one_message_and_code_2(
    tool: str, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert load(tool).main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: nowhere")
