"""The directory of a run as a start finds it, and what the start writes there once it is accepted."""

import hashlib
import os
from pathlib import Path

from megatron_sts.config import Recipe, StageConfig, checkpoint_root, resolved_yaml
from megatron_sts.errors import ConfigError
from megatron_sts.train.checkpoint_directory import remove_left_over

RECIPE_FILE = "recipe.yaml"
_INDEX_NAME_DIGITS = 12


def check_output_directory(recipe: Recipe) -> None:
    """Raise ConfigError where `output_dir` will not take what training writes; nothing is written to find out."""
    there = checkpoint_root(recipe)
    while not os.path.lexists(there):
        there = there.parent
    if not there.is_dir():
        raise _refusal(recipe, f"{there} is not a directory")
    if not os.access(there, os.W_OK | os.X_OK):
        raise _refusal(recipe, f"{there}: no right to write, or a read-only file system")


def open_output_directory(recipe: Recipe) -> None:
    """Make the directories, write the resolved recipe, and clear away what a killed run has left half written.

    Contract: called on rank 0 when nothing can refuse the start any more: what is loaded is loaded.
    """
    try:
        checkpoint_root(recipe).mkdir(parents=True, exist_ok=True)
        (recipe.output_dir / RECIPE_FILE).write_text(resolved_yaml(recipe))
    except OSError as error:
        raise _refusal(recipe, f"{error.filename}: {error.strerror}") from error
    remove_left_over(recipe)


def index_file(recipe: Recipe, stage: StageConfig) -> Path:
    """Where the measured lengths of a stage's samples are kept.

    Named by what is measured and how, so that a start with other data, if it is refused, leaves the run's index.
    """
    data = stage.data
    measured = (data.train, data.images, data.template, data.system_prompt, recipe.model.tokenizer)
    name = hashlib.sha256(repr(tuple(map(str, measured))).encode()).hexdigest()[:_INDEX_NAME_DIGITS]
    return recipe.output_dir / "index" / f"{stage.name}-{name}.npz"


def _refusal(recipe: Recipe, reason: str) -> ConfigError:
    return ConfigError(
        f"output_dir: found {recipe.output_dir}, which cannot be written to ({reason}); "
        "make room or give the rights, or name another directory"
    )
