"""Ranks that a command starts of itself, as many as the recipe's layout asks, and the result they leave to it."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

_LAUNCHER = Path(__file__).resolve().parents[2] / "tools" / "launch.py"
# Where rank 0 leaves its result. The ranks' standard output has what libraries print, too.
_RESULT = "MEGATRON_STS_RESULT"


def is_rank() -> bool:
    """Whether a launcher has started this process, ours or the user's torchrun."""
    return "RANK" in os.environ


def run_on_ranks(command: Path, arguments: Sequence[str], ranks: int) -> tuple[int, str]:
    """Run a command on ranks of this machine; returns its exit code and what rank 0 left with `leave_result`.

    The ranks' standard output goes to standard error.
    """
    launcher = [sys.executable, str(_LAUNCHER), "--standalone", "--nproc-per-node", str(ranks)]
    with tempfile.TemporaryDirectory() as directory:
        result = Path(directory) / "result"
        environment = os.environ | {_RESULT: str(result)}
        with subprocess.Popen([*launcher, str(command), *arguments], env=environment, stdout=sys.stderr) as running:
            try:
                code = running.wait()
            except KeyboardInterrupt:
                # The terminal has told the launcher too, which ends its ranks.
                code = running.wait()
        if code != 0:
            return (code if code > 0 else 128 - code), ""
        return 0, result.read_text()


def leave_result(text: str) -> None:
    """Leave rank 0's result to the command that started the ranks; print it where the user started them."""
    if _RESULT in os.environ:
        Path(os.environ[_RESULT]).write_text(text)
    else:
        print(text)
