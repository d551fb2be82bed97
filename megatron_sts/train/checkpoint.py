"""Checkpoints: megatron-core's torch_dist format, a run.json and a manifest, visible only when whole.

A checkpoint is written aside and renamed when every rank has finished (checkpoint_directory.py). It loads into any
tensor, pipeline and data-parallel layout.
"""

from pathlib import Path
from typing import Any

from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingException

from megatron_sts.config import Recipe
from megatron_sts.errors import CheckpointError
from megatron_sts.model.mllm import MultimodalModel
from megatron_sts.parallel.restricted_reader import READ_ERRORS, check_holds_no_code
from megatron_sts.parallel.together import rank_zero_does
from megatron_sts.train.checkpoint_directory import CheckpointDirectory
from megatron_sts.train.optimizer import StageOptimizer


def save_checkpoint(
    recipe: Recipe, stage: str, step: int, chunks: list[MultimodalModel], optimizer: StageOptimizer | None
) -> Path:
    """Write a checkpoint with `step` steps of `stage` done, on all ranks together; returns its directory.

    `optimizer` None leaves its state out: the end of a run's last stage, or a starting point.
    """
    directory = CheckpointDirectory(recipe, stage, step)
    directory.begin()
    dist_checkpointing.save(_sharded_state(chunks, optimizer, is_loading=False), str(directory.partial))
    directory.finish()
    return directory.final


def load_checkpoint(
    path: Path, chunks: list[MultimodalModel], optimizer: StageOptimizer | None = None, step: int = 0
) -> None:
    """Load weights, and with `optimizer` its state at `step`, into this rank's part of the model; all ranks together.

    Raises CheckpointError where the checkpoint is of another model, damaged, or holds something that could run code.
    """
    rank_zero_does(lambda: check_holds_no_code(path))
    wanted = _sharded_state(chunks, optimizer, is_loading=True)
    try:
        state = dist_checkpointing.load(wanted, str(path))
    except (CheckpointingException, *READ_ERRORS) as error:
        raise CheckpointError(f"{path} does not fit the recipe's model, or is damaged: {error}") from error
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
