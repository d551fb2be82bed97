"""What a checkpoint holds, as megatron-core's sharded state, and how it is loaded, into any layout.

saver.py decides when one is saved, checkpoint_save.py leads it through its steps, checkpoint_state.py writes it,
checkpoint_directory.py shows it.
"""

from pathlib import Path
from typing import Any

from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingException

from megatron_sts.errors import CheckpointError
from megatron_sts.model.mllm import MultimodalModel
from megatron_sts.parallel.restricted_reader import READ_ERRORS, check_holds_no_code
from megatron_sts.parallel.together import rank_zero_does
from megatron_sts.train.optimizer import StageOptimizer


def load_checkpoint(
    path: Path, chunks: list[MultimodalModel], optimizer: StageOptimizer | None = None, step: int = 0
) -> None:
    """Load weights, and with `optimizer` its state at `step`, into this rank's part of the model; all ranks together.

    Raises CheckpointError where the checkpoint is of another model, damaged, or holds something that could run code.
    """
    rank_zero_does(lambda: check_holds_no_code(path))
    wanted = sharded_state(chunks, optimizer, is_loading=True)
    try:
        state = dist_checkpointing.load(wanted, str(path))
    except (CheckpointingException, *READ_ERRORS) as error:
        raise CheckpointError(f"{path} does not fit the recipe's model, or is damaged: {error}") from error
    for number, chunk in enumerate(chunks):
        chunk.load_state_dict(state[f"model{number}"], strict=True)
    if optimizer is not None:
        optimizer.load_state_dict(state.get("optimizer", {}), step)


def sharded_state(chunks: list[MultimodalModel], optimizer: StageOptimizer | None, is_loading: bool) -> dict[str, Any]:
    """What is saved and loaded: weights, FP8 state with them, and with `optimizer` its state; on all ranks together."""
    state: dict[str, Any] = {f"model{number}": chunk.sharded_state_dict() for number, chunk in enumerate(chunks)}
    if optimizer is not None:
        # Made from tensors that still are the parameters, by which the optimiser finds its own.
        optimizer_state = optimizer.sharded_state_dict(dict(state), is_loading)
        if optimizer_state:
            state["optimizer"] = optimizer_state
    return state
