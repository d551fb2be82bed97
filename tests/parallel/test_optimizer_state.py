"""The optimiser's state goes bitwise from any optimiser and layout to any other, by each rank's own part alone.

Each checkpoint of a chain is loaded and saved again without a step, under another layout and another optimiser; in the
end one process reads all of them and compares every tensor with the first's.
"""

import contextlib
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict_from_keys

from megatron_sts.config import Recipe, checkpoint_path
from megatron_sts.parallel.groups import start_groups
from megatron_sts.sts import StagePlanner
from megatron_sts.train.benchmark import Stepper
from megatron_sts.train.checkpoint import load_checkpoint
from megatron_sts.train.checkpoint_save import CheckpointSave
from tests.parallel.saved_bytes import bytes_beside, bytes_read, bytes_to_write
from tests.parallel.test_fused_optimizers import stand_ins
from tests.ranks import run_ranks
from tests.tiny import ARCHITECTURE, tiny_recipe

TIED = ARCHITECTURE | {"language": ARCHITECTURE["language"] | {"tied_embeddings": True}}
BUCKETS = {"overlap_grad_reduce": True, "overlap_param_gather": True, "bucket_parameters": 3000}
LANGUAGE_ALONE = {"tune__trains": ["language"], "tune__learning_rate": {"projector": None}}
PROJECTOR_ALONE = {"tune__trains": ["projector"], "tune__learning_rate": {"language": None}}
DISTRIBUTED: dict[str, Any] = {"optimizer": {"distributed": True}}
TENSOR: dict[str, Any] = {"tensor": 2, "sequence_parallel": True}
# (recipe, whether another library's Adam stands in) for four ranks each; the first trains.
CHAIN: tuple[tuple[dict[str, Any], bool], ...] = (
    ({"parallel": TENSOR | {"pipeline": 2}}, False),
    (DISTRIBUTED, False),
    ({"parallel": {"pipeline": 2, "layers_per_stage": [1, 3]}}, True),
    (DISTRIBUTED | {"parallel": {"pipeline": 2, "virtual_pipeline": 2} | BUCKETS}, True),
    (DISTRIBUTED | {"parallel": TENSOR | {"context": 2}}, False),
    ({}, False),
)
# Those of one data-parallel group of all four.
DATA_PARALLEL = (1, 5)
CASES: dict[str, dict[str, Any]] = {
    "tied_bf16": {"precision": "bf16", "model__architecture": TIED} | LANGUAGE_ALONE,
    "stages_that_train_nothing": PROJECTOR_ALONE,
}


def _convert(recipe: Recipe, number: int, stand_in: bool) -> dict[str, Any]:
    """Load the checkpoint `number` - 1, or train two steps, and save as `number`."""
    with contextlib.ExitStack() as patches:
        for library in stand_ins() if stand_in else ():
            patches.enter_context(library)
        stage = recipe.stage("tune")
        stepper = Stepper(recipe, stage, 4, start_groups(recipe.parallel, recipe.seed))
        optimizer, read = stepper.parts.optimizer, list[int]()
        if number == 0:
            planner = StagePlanner(recipe, stage, 4, 4)
            for step in range(2):
                stepper.time(planner.plan(step))
        else:
            with bytes_read(read):
                load_checkpoint(checkpoint_path(recipe, "tune", number - 1), stepper.parts.chunks, optimizer, 2)
        state = stepper.parts.state()
        held = bytes_beside(stepper.parts, state)
        save = CheckpointSave(recipe, "tune", number, state, copies=True)
        written = bytes_to_write(save)
        save.finish()
    counts = {group["step"] for group in optimizer.inner.param_groups if "step" in group}
    return {"held": held, "written": written, "read": sum(read), "updates": {optimizer.updates} | counts}


def _convert_all(recipes: list[Recipe]) -> list[dict[str, Any]]:
    return [
        _convert(recipe, number, stand_in)
        for number, (recipe, (_, stand_in)) in enumerate(zip(recipes, CHAIN, strict=True))
    ]


def _tensors(recipe: Recipe, number: int) -> dict[str, torch.Tensor]:
    loaded = _load_state_dict_from_keys(checkpoint_id=str(checkpoint_path(recipe, "tune", number)))
    return {key: value for key, value in loaded.items() if isinstance(value, torch.Tensor)}


@pytest.mark.parametrize("case", CASES)
def test_state_goes_bitwise_from_any_optimizer_and_layout_to_any_other(tmp_path, case):
    recipes = []
    for changes, _ in CHAIN:
        keep = {"checkpoint": {"keep_last": len(CHAIN)}, "tune__data": {"text_tokens": 20}}
        recipes.append(tiny_recipe(tmp_path, **keep, **CASES[case], **changes))
    ranks = run_ranks(4, _convert_all, recipes)
    first = _tensors(recipes[0], 0)
    state = [key for key in first if key.startswith("optimizer.state.")]
    masters = {"fp32_param"} if "bf16" in case else set()
    assert {key.split(".")[2] for key in state} == {"exp_avg", "exp_avg_sq"} | masters
    assert all(first[key].any() for key in state)
    for number, of_ranks in enumerate(zip(*ranks, strict=True)):
        found = _tensors(recipes[number], number)
        assert found.keys() == first.keys()
        for key, value in first.items():
            assert torch.equal(found[key], value), (number, key)
        assert [rank["updates"] for rank in of_ranks] == [{2}] * 4, number
        assert [rank["held"] for rank in of_ranks] == [0] * 4, number
        if number in DATA_PARALLEL:
            written = [rank["written"] for rank in of_ranks]
            assert max(written) < 0.26 * sum(written)
            # Read once by all four together, but for parameters on the border of two ranks' parts.
            files = checkpoint_path(recipes[number], "tune", number - 1).glob("*.distcp")
            assert sum(rank["read"] for rank in of_ranks) < 1.25 * sum(file.stat().st_size for file in files)
