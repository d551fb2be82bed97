"""Where a run keeps its checkpoints."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from megatron_sts.config.manifest import write_through
from megatron_sts.config.not_a_checkpoint import LATEST_FILE, PARTIAL
from megatron_sts.config.recipe import Recipe
from megatron_sts.config.run_file import Run, read_run
from megatron_sts.errors import CheckpointError

METRICS_FILE = "metrics.jsonl"
"""One line a step, in a run's output_dir."""
QUARANTINE_FILE = "quarantine.jsonl"
"""In a run's output_dir: one line for each record that was found bad while training."""
OUTDATED = ".outdated"
"""Ending of a checkpoint's name while it is removed."""
_STEP_DIGITS = 8


def checkpoint_root(recipe: Recipe) -> Path:
    """The directory that holds a run's checkpoints."""
    return recipe.output_dir / "checkpoints"


def checkpoint_path(recipe: Recipe, stage: str, step: int) -> Path:
    """The directory of the checkpoint with `step` steps of `stage` done."""
    return checkpoint_root(recipe) / f"{stage}-{step:0{_STEP_DIGITS}d}"


def checkpoints_of_stage(recipe: Recipe, stage: str) -> list[Path]:
    """The checkpoints of a stage, oldest first; that their names are final says that they were once whole.

    stage: its name, `*` for all stages.
    """
    return sorted(checkpoint_root(recipe).glob(f"{stage}-" + "[0-9]" * _STEP_DIGITS))


def step_of(checkpoint: Path) -> int:
    """The steps of its stage that a checkpoint has done, by its name."""
    return int(checkpoint.name[-_STEP_DIGITS:])


def outdated(
    checkpoints: Sequence[Path], keep_last: int, keep_every: int | None, best: Path | None = None
) -> list[Path]:
    """Those of a stage's checkpoints, oldest first, that are neither among the last, nor of a step to be kept, nor the
    best."""
    old = [path for path in checkpoints[:-keep_last] if path != best]
    return [path for path in old if keep_every is None or step_of(path) % keep_every]


def best_of(checkpoints: Sequence[Path]) -> Path | None:
    """Of a stage's checkpoints, oldest first, the one of the lowest validation loss, the oldest of several; None where
    none has one. What cannot be read does not count."""
    losses = [(loss, path) for path in checkpoints if (loss := _validation_loss(path)) is not None]
    return min(losses, default=(0.0, None), key=lambda found: found[0])[1]


def _validation_loss(checkpoint: Path) -> float | None:
    try:
        return read_run(checkpoint).validation_loss
    except CheckpointError:
        return None


def write_latest(checkpoint: Path) -> None:
    """Have `latest`, beside the checkpoints, name this one; it is replaced at once, never half written."""
    file = checkpoint.parent / LATEST_FILE
    new = file.with_name(file.name + PARTIAL)
    new.write_text(checkpoint.name + "\n", encoding="utf-8")
    write_through(new)
    os.replace(new, file)
    write_through(file.parent)


def remove_checkpoint(checkpoint: Path) -> None:
    """Remove a checkpoint; killed on the way, it leaves nothing that has a checkpoint's name."""
    aside = checkpoint.with_name(checkpoint.name + OUTDATED)
    os.replace(checkpoint, aside)
    shutil.rmtree(aside)


def newest_runs(recipe: Recipe) -> dict[str, tuple[Path, Run]]:
    """The newest readable checkpoint of each of the recipe's stages that has one, in order, and what it says of itself.

    Raises CheckpointError where `output_dir` has checkpoints and none can be read, or none is of one of these stages.
    """
    found: dict[str, tuple[Path, Run]] = {}
    failure: CheckpointError | None = None
    for stage in recipe.stages:
        for checkpoint in reversed(checkpoints_of_stage(recipe, stage.name)):
            try:
                found[stage.name] = checkpoint, read_run(checkpoint)
                break
            except CheckpointError as error:
                failure = failure or error
    if found:
        return found
    if failure is not None:
        raise failure
    if others := checkpoints_of_stage(recipe, "*"):
        stages = ", ".join(stage.name for stage in recipe.stages)
        raise CheckpointError(
            f"output_dir: found {recipe.output_dir}, which holds another run: {others[-1].name}, and no checkpoint of "
            f"this recipe's stages ({stages}); choose another directory, and to begin from that checkpoint set "
            f"model.init: {others[-1]}"
        )
    return {}
