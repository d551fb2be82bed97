"""What a user is told of an exception that nobody foresaw, and the log file with its trace."""

import os
import shlex
import sys
import tempfile
import time
import traceback
from pathlib import Path

from megatron_sts.rank_errors import rank_of_environment
from megatron_sts.versions import installed_versions

_LONGEST_TEXT = 300
_PACKAGE = str(Path(__file__).resolve().parent)


def fault_message(error: BaseException) -> str:
    """Write the trace to a log file of this rank; returns what happened, where, and what to report."""
    text = " ".join(str(error).split())
    if len(text) > _LONGEST_TEXT:
        text = f"{text[:_LONGEST_TEXT]}..."
    lines = [f"error: {type(error).__name__}{f': {text}' if text else ''} (in {_place(error)})"]
    lines.append("This is a fault of megatron_sts: it should have worked, or been refused with a reason.")
    log = _log(error)
    file = _written(log)
    if file is None:
        lines += ["Please report it with the recipe and this, for which no file could be written:", log]
    else:
        ranks = " (one file for each rank)" if "RANK" in os.environ else ""
        lines.append(f"Please report it with the recipe and {file}{ranks}: trace, command and versions.")
    return "\n".join(lines)


def _log(error: BaseException) -> str:
    """Everything that a report needs: when, what was run, on which rank, with which versions, the trace."""
    versions = ", ".join(f"{name} {version}" for name, version in installed_versions().items())
    rank = f"{rank_of_environment()} of {os.environ.get('WORLD_SIZE', '1')}"
    return (
        f"time: {time.strftime('%Y-%m-%d %H:%M:%S')}\ncommand: {shlex.join(sys.argv)}\nrank: {rank}\n"
        f"versions: {versions}\n\n{''.join(traceback.format_exception(error))}"
    )


def _written(log: str) -> Path | None:
    """The log file, in the current directory or where temporary files go; None where neither can be written to."""
    moment = time.strftime("%Y%m%d-%H%M%S")
    name = f"fault-{Path(sys.argv[0]).stem}-{moment}-rank{rank_of_environment()}-{os.getpid()}.log"
    for directory in (Path.cwd(), Path(tempfile.gettempdir())):
        try:
            (directory / name).write_text(log, encoding="utf-8", errors="backslashreplace")
        except OSError:
            continue
        return directory / name
    return None


def _place(error: BaseException) -> str:
    """Where it happened, as `loop.py:88 train_stage`: in the innermost frame of this package, else of all."""
    # The first is the command's outermost part, where every error passes.
    frames = traceback.extract_tb(error.__traceback__)[1:] or traceback.extract_tb(error.__traceback__)
    frame = ([frame for frame in frames if frame.filename.startswith(_PACKAGE)] or frames)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno} {frame.name}"
