"""Shows that a checkpoint is written a few tensors at a time, in the format that megatron-core loads."""

import weakref
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.mapping import ShardedObject

from megatron_sts.hf.checkpoint_writer import Piece, write_checkpoint
from megatron_sts.hf.training_checkpoint import TensorReader
from megatron_sts.parallel.device import prepare_device
from tests.ranks import run_ranks

LAYERS, ROWS = 4, 6


def _pieces(live: list[Any], most: list[int]) -> list[Piece]:
    """A stack of layers and a tensor in two blocks of rows; each notes how many made before it are still held."""

    def make(value: float, shape: tuple[int, ...]) -> torch.Tensor:
        tensor = torch.full(shape, value)
        live.append(weakref.ref(tensor))
        most.append(sum(reference() is not None for reference in live))
        return tensor

    stack = [
        Piece("stack", (LAYERS, 8), (layer, 0), (1, 8), torch.float32, lambda layer=layer: make(layer, (8,)))
        for layer in range(LAYERS)
    ]
    blocks = [
        Piece("rows", (ROWS, 2), (0, 0), (4, 2), torch.bfloat16, lambda: make(10.0, (4, 2)).bfloat16()),
        Piece("rows", (ROWS, 2), (4, 0), (2, 2), torch.bfloat16, lambda: make(20.0, (2, 2)).bfloat16()),
    ]
    return [*stack, *blocks]


def test_tensors_are_made_when_they_are_written_and_not_kept(tmp_path: Path) -> None:
    most: list[int] = []
    written: list[int] = []
    # One piece of the stack a file.
    write_checkpoint(tmp_path, _pieces([], most), [], written.append, file_bytes=40)
    assert len(most) == LAYERS + 2
    assert max(most) <= 2
    assert written == [32] * LAYERS + [16, 8]
    reader = TensorReader(tmp_path)
    assert reader.read("stack")[:, 0].tolist() == [0, 1, 2, 3]
    assert reader.read("rows")[:, 1].tolist() == [10, 10, 10, 10, 20, 20]
    assert (reader.dtype("stack"), reader.dtype("rows")) == (torch.float32, torch.bfloat16)


def _load(directory: Path) -> dict[str, Any]:
    prepare_device()
    # As models hold it: each layer apart, and the rows cut otherwise than they were written.
    wanted: dict[str, Any] = {
        f"layer{layer}": ShardedTensor.from_rank_offsets(
            "stack", torch.zeros(8), (0, layer, LAYERS), prepend_axis_num=1
        )
        for layer in range(LAYERS)
    }
    for block in range(3):
        wanted[f"rows{block}"] = ShardedTensor.from_rank_offsets("rows", torch.zeros(2, 2), (0, block, 3))
    wanted["states"] = [ShardedObject("mlp._extra_state", b"", (LAYERS,), (layer,)) for layer in range(LAYERS)]
    state = dist_checkpointing.load(wanted, str(directory))
    states = state.pop("states")
    return {name: value[..., 0].tolist() for name, value in state.items()} | {"states": states}


def test_megatron_core_loads_it_in_other_cuts_and_another_dtype(tmp_path: Path) -> None:
    objects = [f"mlp._extra_state/shard_{layer}_{LAYERS}" for layer in range(LAYERS)]
    write_checkpoint(tmp_path, _pieces([], []), objects, lambda done: None)
    (found,) = run_ranks(1, _load, tmp_path)
    assert [found[f"layer{layer}"] for layer in range(LAYERS)] == [0, 1, 2, 3]
    assert [found[f"rows{block}"] for block in range(3)] == [[10, 10], [10, 10], [20, 20]]
    assert found["states"] == [None] * LAYERS
