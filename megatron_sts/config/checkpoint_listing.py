"""The checkpoints in a directory: which there are, whether they are whole, which of them can go."""

import re
import time
from dataclasses import dataclass
from pathlib import Path

from megatron_sts.config.manifest import problems_of
from megatron_sts.config.run_directory import LATEST_FILE, best_of, outdated, remove_checkpoint
from megatron_sts.config.run_file import RUN_FILE, read_run
from megatron_sts.errors import CheckpointError

_NAME = re.compile(r"(?P<stage>[a-z0-9_-]+)-\d{8}")


@dataclass(frozen=True, slots=True)
class ListedCheckpoint:
    """One checkpoint. step is None where run.json cannot be read; age in seconds; problems: empty where it is whole.

    validation_loss: None where it was not measured. is_best: whether no other one of its stage has a lower one.
    """

    path: Path
    stage: str
    step: int | None
    bytes: int
    age: float
    is_latest: bool
    is_best: bool
    validation_loss: float | None
    problems: tuple[str, ...]


def list_checkpoints(directory: Path, hashes: bool) -> list[ListedCheckpoint]:
    """The checkpoints of a run, oldest first, or the one that `directory` is.

    directory: a run's output_dir, the `checkpoints` in it, or one checkpoint. hashes: whether every file is read and
    compared, else only names and sizes are.
    Raises CheckpointError where there is no checkpoint.
    """
    paths = _paths(directory)
    latest = paths[0].parent / LATEST_FILE
    named = latest.read_text(encoding="utf-8").strip() if latest.is_file() else ""
    # Of one checkpoint it is not known how the others of its stage are.
    best = set() if paths == [directory] else _best_of_stages(paths)
    listed = [_listed(path, path.name == named, path in best, hashes) for path in paths]
    return sorted(listed, key=lambda checkpoint: (-checkpoint.age, checkpoint.path.name))


def prune(directory: Path, keep_last: int, keep_every: int | None, only_show: bool) -> list[Path]:
    """Remove what a run with these settings would not keep, stage by stage; returns what was, or would be, removed.

    Never the newest whole checkpoint of a stage: every file is read and compared first. Damaged ones are left to be
    looked at.
    """
    removed = []
    listed = [checkpoint for checkpoint in list_checkpoints(directory, hashes=True) if not checkpoint.problems]
    for stage in sorted({checkpoint.stage for checkpoint in listed}):
        paths = sorted(checkpoint.path for checkpoint in listed if checkpoint.stage == stage)
        best = best_of(paths) if read_run(paths[-1]).recipe.keep_best else None
        removed += outdated(paths, keep_last, keep_every, best)
    for path in removed:
        if not only_show:
            try:
                remove_checkpoint(path)
            except OSError as error:
                raise CheckpointError(f"{error.filename or path}: cannot be removed ({error.strerror})") from error
    return removed


def best_checkpoint(directory: Path) -> Path:
    """Of a run's checkpoints, those of the stage that was saved last, the one of the lowest validation loss.

    directory: a run's output_dir, or the `checkpoints` in it. Raises CheckpointError where no loss was measured.
    """
    paths = [checkpoint.path for checkpoint in list_checkpoints(directory, hashes=False) if not checkpoint.problems]
    best = best_of(sorted(path for path in paths if _stage_of(path) == _stage_of(paths[-1])))
    if best is None:
        raise CheckpointError(
            f"{directory}: no checkpoint of the last stage has a validation loss; train with keep_best: true and "
            "data.validation, or name a checkpoint"
        )
    return best


def _stage_of(checkpoint: Path) -> str:
    return checkpoint.name.rpartition("-")[0]


def _best_of_stages(paths: list[Path]) -> set[Path | None]:
    stages = {_stage_of(path) for path in paths}
    return {best_of(sorted(path for path in paths if _stage_of(path) == stage)) for stage in stages}


def _paths(directory: Path) -> list[Path]:
    if (directory / RUN_FILE).is_file() or (_NAME.fullmatch(directory.name) and directory.is_dir()):
        return [directory]
    for root in (directory / "checkpoints", directory):
        if root.is_dir() and (found := sorted(path for path in root.iterdir() if _is_checkpoint(path))):
            return found
    raise CheckpointError(
        f"{directory}: no checkpoint in it; give a run's output_dir, the directory `checkpoints` in it, or a checkpoint"
    )


def _is_checkpoint(path: Path) -> bool:
    return path.is_dir() and _NAME.fullmatch(path.name) is not None


def _listed(path: Path, is_latest: bool, is_best: bool, hashes: bool) -> ListedCheckpoint:
    name = _NAME.fullmatch(path.name)
    problems = problems_of(path, hashes=hashes)
    stage, step, loss = name["stage"] if name else "", None, None
    try:
        run = read_run(path)
        stage, step, loss = run.stage, run.step, run.validation_loss
    except CheckpointError as error:
        if not problems:
            problems = [str(error)]
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    age = time.time() - path.stat().st_mtime
    return ListedCheckpoint(path, stage, step, size, age, is_latest, is_best, loss, tuple(problems))
