"""Where a run keeps its checkpoints, and which of them are whole."""

from pathlib import Path

from megatron_sts.config.recipe import Recipe
from megatron_sts.config.run_file import RUN_FILE, Run, read_run

METRICS_FILE = "metrics.jsonl"
"""One line a step, in a run's output_dir."""
_STEP_DIGITS = 8


def checkpoint_root(recipe: Recipe) -> Path:
    """The directory that holds a run's checkpoints."""
    return recipe.output_dir / "checkpoints"


def checkpoint_path(recipe: Recipe, stage: str, step: int) -> Path:
    """The directory of the checkpoint with `step` steps of `stage` done."""
    return checkpoint_root(recipe) / f"{stage}-{step:0{_STEP_DIGITS}d}"


def checkpoints_of_stage(recipe: Recipe, stage: str) -> list[Path]:
    """Complete checkpoints of a stage, oldest first."""
    found = checkpoint_root(recipe).glob(f"{stage}-" + "[0-9]" * _STEP_DIGITS)
    return sorted(path for path in found if (path / RUN_FILE).is_file())


def newest_run(recipe: Recipe) -> Run | None:
    """What the newest checkpoint in the recipe's `output_dir` says of the run; None where there is none.

    Raises CheckpointError where it cannot be read.
    """
    for stage in reversed(recipe.stages):
        if found := checkpoints_of_stage(recipe, stage.name):
            return read_run(found[-1])
    return None
