"""The steps of an example's script: announced, and not done again where their output is there."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / "tools"


def announce(text: str) -> None:
    """Print the heading of a step."""
    print(f"\n== {text}", flush=True)


def make(text: str, output: Path, write: Callable[[Path], object], is_atomic: bool = False) -> None:
    """Announce a step and let `write` write its file or directory, unless it is there: what is there is whole.

    is_atomic: `write` leaves all or nothing by itself; else it is given a path beside, which is renamed at its end.
    """
    if output.exists():
        return
    announce(text)
    output.parent.mkdir(parents=True, exist_ok=True)
    if is_atomic:
        write(output)
        return
    beside = output.with_name(output.name + ".partial")
    if beside.is_dir():
        shutil.rmtree(beside)
    beside.unlink(missing_ok=True)
    write(beside)
    beside.rename(output)


def run_script(script: Path, arguments: Sequence[str | Path]) -> None:
    """Run a Python program; where it fails, which it has said, this one ends with its exit code."""
    done = subprocess.run([sys.executable, str(script), *map(str, arguments)], check=False)
    if done.returncode != 0:
        sys.exit(done.returncode)


def resume_or_set_aside(run: Path, settings: str) -> None:
    """Make a run's directory; one that was made with other settings is renamed, and that is said.

    settings: of everything that what lies in the directory depends on; kept in it.
    """
    kept = run / "settings.txt"
    if run.exists() and (not kept.is_file() or kept.read_text(encoding="utf-8") != settings):
        taken = 1
        while (aside := run.with_name(f"{run.name}.{taken}")).exists():
            taken += 1
        run.rename(aside)
        print(f"{run} was made with other settings or by another version; it is now {aside}", flush=True)
    elif run.exists():
        print(f"Resuming what is in {run}; remove it to begin again.", flush=True)
    run.mkdir(parents=True, exist_ok=True)
    kept.write_text(settings, encoding="utf-8")
