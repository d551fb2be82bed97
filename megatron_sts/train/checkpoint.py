"""Checkpoints: megatron-core's torch_dist format and a run.json, visible only when whole.

A checkpoint is written to `<name>.partial` and renamed when every rank has finished, so a directory with a final
name is complete. It loads into any tensor, pipeline and data-parallel layout.
"""

import os
import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingException

from megatron_sts.config import Recipe, Run, checkpoint_path, checkpoints_of_stage, difference, write_run
from megatron_sts.errors import CheckpointError
from megatron_sts.model.mllm import MultimodalModel
from megatron_sts.train.optimizer import StageOptimizer

_PARTIAL = ".partial"

# What a resumed run may change; anything else would not be the same training.
_MAY_CHANGE = (
    "output_dir",
    "parallel.",
    "logging.",
    "checkpoint.",
    "recompute",
    "stop_after",
    "bad_steps.",
    "loss_spike",
    "optimizer.distributed",
    "model.vision",
    "model.tokenizer",
    "model.init",
)
_STAGE_MAY_CHANGE = ("data.train", "data.images", "data.workers", "data.samples", "data.text_tokens", "batch.micro")


def save_checkpoint(
    recipe: Recipe, stage: str, step: int, chunks: list[MultimodalModel], optimizer: StageOptimizer | None
) -> Path:
    """Write a checkpoint with `step` steps of `stage` done, on all ranks together; returns its directory.

    `optimizer` None leaves its state out: the end of a run's last stage, or a starting point.
    """
    final = checkpoint_path(recipe, stage, step)
    partial = final.with_name(final.name + _PARTIAL)
    if dist.get_rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    dist.barrier()
    dist_checkpointing.save(_sharded_state(chunks, optimizer, is_loading=False), str(partial))
    if dist.get_rank() == 0:
        write_run(partial, stage, step, recipe)
        if final.exists():
            shutil.rmtree(final)
        os.replace(partial, final)
        for old in checkpoints_of_stage(recipe, stage)[: -recipe.checkpoint.keep_last]:
            shutil.rmtree(old)
    dist.barrier()
    return final


def load_checkpoint(
    path: Path, chunks: list[MultimodalModel], optimizer: StageOptimizer | None = None, step: int = 0
) -> None:
    """Load weights, and with `optimizer` its state at `step`, into this rank's part of the model."""
    wanted = _sharded_state(chunks, optimizer, is_loading=True)
    try:
        state = dist_checkpointing.load(wanted, str(path))
    except (CheckpointingException, OSError) as error:
        raise CheckpointError(f"{path} does not fit the recipe's model: {error}") from error
    for number, chunk in enumerate(chunks):
        chunk.load_state_dict(state[f"model{number}"], strict=True)
    if optimizer is not None:
        optimizer.load_state_dict(state.get("optimizer", {}), step)


def _sharded_state(chunks: list[MultimodalModel], optimizer: StageOptimizer | None, is_loading: bool) -> dict[str, Any]:
    state: dict[str, Any] = {f"model{number}": chunk.sharded_state_dict() for number, chunk in enumerate(chunks)}
    if optimizer is not None:
        # Made from tensors that still are the parameters, by which the optimiser finds its own.
        optimizer_state = optimizer.sharded_state_dict(dict(state), is_loading)
        if optimizer_state:
            state["optimizer"] = optimizer_state
    return state


def check_resumable(path: Path, run: Run, recipe: Recipe) -> None:
    """Raise CheckpointError, naming the fields, where the recipe is not the one the checkpoint was trained with.

    The layout, where files lie, logging and what bears on memory alone may change, and other stages altogether.
    """
    changed = difference(run.recipe.resolved(), recipe.resolved())
    refused = [field for field in changed if not _may_change(field, run.stage)]
    if refused:
        raise CheckpointError(
            f"{path} was trained with other values of {', '.join(sorted(refused))}; "
            "put them back, or choose another output_dir to start anew"
        )


def _may_change(field: str, stage: str) -> bool:
    if field.startswith("stages."):
        _, name, rest = [*field.split(".", 2), ""][:3]
        return name != stage or rest.startswith(_STAGE_MAY_CHANGE)
    return field.startswith(_MAY_CHANGE)
