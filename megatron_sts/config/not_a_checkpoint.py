"""What lies at a path that is not one of our checkpoints, and which command or path makes it right."""

import json
import os
from pathlib import Path
from typing import Any

RUN_FILE = "run.json"
"""In every checkpoint: what it says of its own making (run_file.py)."""
LATEST_FILE = "latest"
"""Beside the checkpoints of a run: the name of the one that was finished last."""
PARTIAL = ".partial"
"""Ending of the name of what is not written whole yet, a checkpoint or `latest`."""
# Of a run's output_dir, of its `checkpoints`, of a directory of runs; no deeper, where there may be millions of files.
_CHECKPOINTS_IN = (f"checkpoints/*/{RUN_FILE}", f"*/{RUN_FILE}", f"*/checkpoints/*/{RUN_FILE}")
_IMPORT = "python tools/convert.py import"
_OUTPUT = "--output checkpoints/init"


def why_no_checkpoint(path: Path) -> str:
    """What a path without run.json is, and what to give in its place or to run."""
    # os.path, because pathlib raises on some paths (too long, no permission) where os.path says no.
    if not os.path.isdir(path):
        if os.path.exists(path):
            found = "is a file, not the directory of a checkpoint"
        else:
            found = "does not exist" if path.is_absolute() else f"does not exist (looked for in {Path.cwd()})"
        # `latest`, say, or a step of which no checkpoint is kept.
        meant = _newest(path.parent, (f"*/{RUN_FILE}",)) if os.path.isdir(path.parent) else None
        return f"{found}; {_use(meant) or f'give a finished checkpoint, or make one: {_pair()}'}"
    if path.name.endswith(PARTIAL):
        return f"no {RUN_FILE}: the checkpoint was never finished; {_use(_newest(path.parent)) or 'give another'}"
    if meant := _newest(path):
        is_output = (path / "checkpoints").is_dir() or path.name == "checkpoints"
        found = "it is a run's directory" if is_output else "it is a directory of checkpoints"
        return f"no {RUN_FILE}, so this is not a training checkpoint, {found}; {_use(meant)}"
    if (path / "config.json").is_file():
        kind, command = _hugging_face(path)
        return (
            f"no {RUN_FILE}, so this is not a training checkpoint, but {kind}; make a checkpoint of it, and give that "
            f"one: {command}"
        )
    if (path / "latest_checkpointed_iteration.txt").is_file() or (path / ".metadata").is_file():
        command = f"{_IMPORT} --vision VISION_DIR --megatron {path} {_OUTPUT} --recipe RECIPE.yaml"
        return (
            f"no {RUN_FILE}, so this is not a training checkpoint of this program; give a finished checkpoint, or "
            f"import one of Megatron-LM: {command}"
        )
    return f"no {RUN_FILE}, so this is not a training checkpoint; give a finished checkpoint, or make one: {_pair()}"


def _newest(directory: Path, patterns: tuple[str, ...] = _CHECKPOINTS_IN) -> Path | None:
    """The checkpoint below a directory that was finished last: `latest` says which, else their times."""
    for pattern in patterns:
        found = [file.parent for file in directory.glob(pattern) if not file.parent.name.endswith(PARTIAL)]
        if not found:
            continue
        newest = max(found, key=lambda checkpoint: ((checkpoint / RUN_FILE).stat().st_mtime, checkpoint.name))
        latest = newest.parent / LATEST_FILE
        if latest.is_file() and newest.with_name(latest.read_text(encoding="utf-8").strip()) in found:
            return newest.with_name(latest.read_text(encoding="utf-8").strip())
        return newest
    return None


def _use(meant: Path | None) -> str:
    return f"give {meant}, the last one there" if meant is not None else ""


def _pair() -> str:
    return f"{_IMPORT} --vision VISION_DIR --language LANGUAGE_DIR {_OUTPUT}"


def _hugging_face(path: Path) -> tuple[str, str]:
    """(what model it is, the command that imports it), by its config.json."""
    try:
        config: Any = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        config = None
    config = config if isinstance(config, dict) else {}
    kind = str(config.get("model_type", ""))
    if kind.startswith("llava"):
        return "a Hugging Face LLaVA model, as an export is", f"{_IMPORT} --hf {path} {_OUTPUT}"
    if "vision_config" in config or "patch_size" in config:
        what = f"a Hugging Face vision encoder ({kind})"
        return what, f"{_IMPORT} --vision {path} --language LANGUAGE_DIR {_OUTPUT}"
    what = f"a Hugging Face language model ({kind})" if kind else "a Hugging Face model"
    return what, f"{_IMPORT} --vision VISION_DIR --language {path} {_OUTPUT}"
