"""Shows that no exception leaves a command with a traceback: what is said of each, the exit code, the log file."""

import errno
import re
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_sts.command import command
from megatron_sts.errors import ConfigError, LostRankError
from megatron_sts.exit_codes import FAULT, INTERRUPTED, LOST_RANK, READER_GONE, USER_ERROR

TOOLS = Path(__file__).resolve().parents[2] / "tools"


class OutOfMemoryError(RuntimeError):
    """Stands for torch's."""


def _ends(error: BaseException) -> int:
    @command
    def main() -> int:
        raise error

    return main()


@pytest.fixture(autouse=True)
def _alone(monkeypatch, tmp_path):
    for name in ("RANK", "WORLD_SIZE", "TORCHELASTIC_ERROR_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ConfigError("seed is 'x'; give a number"), USER_ERROR, "error: seed is 'x'; give a number"),
        (LostRankError("rank 3"), LOST_RANK, "error: rank 3"),
        (KeyboardInterrupt(), INTERRUPTED, "interrupted"),
        (
            PermissionError(errno.EACCES, "Permission denied", "/out/x"),
            USER_ERROR,
            "error: /out/x: Permission denied; give the rights to it, or name another",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            USER_ERROR,
            "error: No space left on device; make room on the disk, or write elsewhere",
        ),
        (
            ModuleNotFoundError("No module named 'wandb'", name="wandb"),
            USER_ERROR,
            "error: the Python package of 'wandb' is not installed; install megatron_sts with what it needs",
        ),
        (MemoryError(), USER_ERROR, "error: the machine's memory is full; give the command more, or fewer processes"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_what_is_no_fault_is_one_line(capsys, tmp_path, error, code, said):
    assert _ends(error) == code
    assert capsys.readouterr().err == f"{said}\n"
    assert not list(tmp_path.iterdir())


def test_a_full_gpu_names_what_to_lower(capsys):
    assert _ends(OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")) == USER_ERROR
    said = capsys.readouterr().err
    assert "Tried to allocate 2 GiB" in said and "stages.NAME.batch.micro" in said


@pytest.mark.parametrize(
    "error",
    [
        KeyError("step"),
        FileNotFoundError(errno.ENOENT, "No such file or directory", "/x"),
        ModuleNotFoundError("No module named 'megatron_sts.trian'", name="megatron_sts.trian"),
        # A pipe of our own to another process: who reads the output is still there.
        BrokenPipeError(errno.EPIPE, "Broken pipe"),
        # As a library in Rust panics.
        type("PanicException", (BaseException,), {})("index out of bounds"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_nobody_foresaw_is_a_fault_with_its_trace_in_a_file(capsys, tmp_path, error):
    assert _ends(error) == FAULT
    said = capsys.readouterr().err
    assert said.startswith(f"error: {type(error).__name__}: ") and "(in test_command.py:" in said
    assert "fault of megatron_sts" in said and "Traceback" not in said and "report" in said
    (log,) = tmp_path.iterdir()
    assert str(log) in said and "rank0" in log.name
    text = log.read_text()
    assert "Traceback (most recent call last)" in text and type(error).__name__ in text
    assert "command: " in text and "rank: 0 of 1" in text and re.search(r"torch \d", text)


def test_a_fault_where_nothing_can_be_written_shows_the_trace(capsys, monkeypatch):
    def refused(*arguments: object, **options: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "write_text", refused)
    assert _ends(KeyError("step")) == FAULT
    assert "Traceback" in capsys.readouterr().err


def test_a_long_text_of_an_error_is_cut_on_the_screen_alone(capsys, tmp_path):
    assert _ends(ValueError("x" * 9000)) == FAULT
    assert len(capsys.readouterr().err) < 1000
    (log,) = tmp_path.iterdir()
    assert "x" * 9000 in log.read_text()


def test_argparse_ends_as_it_does():
    with pytest.raises(SystemExit) as ended:
        _ends(SystemExit(2))
    assert ended.value.code == 2


WRITES = """
import sys
from rich.console import Console
from megatron_sts.command import command

@command
def main():
    sys.stdin.read(1)
    if sys.argv[1] == "rich":
        Console().print("x")
    print("x" * int(sys.argv[1]) if sys.argv[1] != "rich" else "x")
    return 0

sys.exit(main())
"""


@pytest.mark.parametrize("what", ["10", "1000000", "rich"])
def test_a_reader_that_is_gone_ends_it_quietly(what):
    given = [sys.executable, "-c", WRITES, what]
    with subprocess.Popen(given, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdin is not None and running.stdout is not None and running.stderr is not None
        running.stdout.close()
        running.stdin.write(b"x")
        running.stdin.close()
        assert running.stderr.read() == b""
        assert running.wait(60) == READER_GONE


@pytest.mark.parametrize("tool", sorted(TOOLS.glob("*.py")), ids=lambda path: path.stem)
def test_every_tool_is_a_command_and_nothing_stands_around_it(tool):
    text = tool.read_text()
    assert "\n@command\ndef main(" in text
    assert text.endswith('\n\n\nif __name__ == "__main__":\n    sys.exit(main())\n')
    assert "MegatronStsError" not in text
