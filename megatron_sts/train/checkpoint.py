"""What a checkpoint holds, as megatron-core's sharded state, and how it is loaded, into any layout.

saver.py decides when one is saved, checkpoint_save.py leads it through its steps, checkpoint_state.py writes it,
checkpoint_directory.py shows it.
"""

from pathlib import Path
from typing import Any

from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.serialization import get_default_load_sharded_strategy
from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelLoadStrategyWrapper
from torch.distributed.checkpoint.api import CheckpointException

from megatron_sts.errors import CheckpointError
from megatron_sts.model.mllm import MultimodalModel
from megatron_sts.parallel.fp8_state import engine_reads_states
from megatron_sts.parallel.restricted_reader import READ_ERRORS, check_holds_no_code
from megatron_sts.parallel.together import rank_zero_does
from megatron_sts.train.checkpoint_replicas import share_out
from megatron_sts.train.optimizer import StageOptimizer
from megatron_sts.train.saved_optimizer import SavedOptimizer


def load_checkpoint(
    path: Path, chunks: list[MultimodalModel], optimizer: StageOptimizer | None = None, step: int = 0
) -> None:
    """Load weights, and with `optimizer` its state at `step`, into this rank's part of the model; all ranks together.

    What several data-parallel ranks need is read by one of them. Raises CheckpointError where the checkpoint is of
    another model, damaged, or holds something that could run code.
    """
    rank_zero_does(lambda: check_holds_no_code(path))
    wanted: dict[str, Any] = _model_state(chunks)
    try:
        if optimizer is not None:
            saved = SavedOptimizer.of(dist_checkpointing.load_common_state_dict(str(path)), step)
            shards = optimizer.shards(wanted, saved.master_weight)
            targets = [shard.data for shard in shards]
            wanted["optimizer"] = {"shards": shards}
        group = chunks[0].pg_collection.dp_cp
        strategy = FullyParallelLoadStrategyWrapper(get_default_load_sharded_strategy(str(path)), group)
        state = dist_checkpointing.load(wanted, str(path), strategy)
    except (CheckpointingException, CheckpointException, *READ_ERRORS) as error:
        raise CheckpointError(
            f"{path} does not fit the recipe's model and optimizer, or is damaged: {_reason(error)}"
        ) from error
    with engine_reads_states():
        for number, chunk in enumerate(chunks):
            chunk.load_state_dict(state[f"model{number}"], strict=True)
    if optimizer is not None:
        # megatron-core hands no empty list back.
        for target, loaded in zip(targets, state.get("optimizer", {}).get("shards", []), strict=True):
            target.copy_(loaded)
        optimizer.resume(step, saved.updates)


def _reason(error: BaseException) -> str:
    """The first rank's words for it, in a line: torch collects the traces of all ranks, and lists all keys."""
    if isinstance(error, CheckpointException):
        error = next(iter(error.failures.values()))[0]
    return str(error).strip("'\"").partition("\n")[0].partition(": [")[0]


def sharded_state(chunks: list[MultimodalModel], optimizer: StageOptimizer | None) -> dict[str, Any]:
    """What is saved: weights, FP8 state with them, and with `optimizer` its state; views, no copies.

    What several data-parallel ranks hold is written by one of them, each having its share of that.
    """
    state = _model_state(chunks)
    group = chunks[0].pg_collection.dp_cp
    if optimizer is None:
        share_out([state], group)
        return state
    # Made from tensors that still are the parameters, by which the optimiser finds its own.
    shards = optimizer.shards(state)
    share_out([state] if optimizer.is_distributed else [state, shards], group)
    return state | {"optimizer": {"updates": optimizer.updates, "shards": shards}}


def _model_state(chunks: list[MultimodalModel]) -> dict[str, Any]:
    return {f"model{number}": chunk.sharded_state_dict() for number, chunk in enumerate(chunks)}
