"""A step whose gradients are not finite on one rank changes nothing on any."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from megatron_sts.config import Recipe
from megatron_sts.data import Batch
from megatron_sts.parallel.groups import start_groups
from megatron_sts.train.loop import Start, prepare_stage
from megatron_sts.train.stage_data import StageData
from tests.ranks import run_ranks
from tests.tiny import tiny_recipe


def _weights(parts: Any) -> list[np.ndarray]:
    return [value.detach().float().numpy().copy() for chunk in parts.chunks for value in chunk.parameters()]


def _spoiled(batch: Batch) -> Batch:
    assert batch.pixels is not None
    return replace(batch, pixels=torch.full_like(batch.pixels, float("nan")))


def _three_steps_the_second_spoiled(recipe: Recipe) -> tuple[list[bool], list[bool]]:
    place = start_groups(recipe.parallel, recipe.seed)
    stage = recipe.stage("tune")
    data = StageData(recipe, stage)
    parts = prepare_stage(recipe, stage, data.total_steps, Start(None, 0, resumes=False), place)
    micro_batches = stage.batch.global_size // (stage.batch.micro * place.data_size)
    dropped, unchanged = [], []
    for step, batches in zip(range(3), data.batches(place, 0), strict=False):
        assert batches is not None
        if step == 1 and place.data_rank == place.data_size - 1 and place.first_stage:
            batches = [_spoiled(batches[0]), *batches[1:]]
        plan = data.planner.plan(step)
        before = _weights(parts)
        result = parts.step.run(plan, batches, micro_batches, stage.batch.micro, data.shape(plan).length)
        dropped.append(result.dropped)
        unchanged.append(all(np.array_equal(one, two) for one, two in zip(before, _weights(parts), strict=True)))
    return dropped, unchanged


@pytest.mark.parametrize(
    "changes",
    [{}, {"optimizer": {"distributed": True}}, {"parallel": {"pipeline": 2}}],
    ids=["dp2", "dp2_distributed", "pp2"],
)
def test_step_with_a_nan_on_one_rank_is_dropped_by_all(tmp_path, changes):
    recipe = tiny_recipe(tmp_path, **changes)
    for dropped, unchanged in run_ranks(2, _three_steps_the_second_spoiled, recipe):
        assert dropped == [False, True, False]
        assert unchanged == [False, True, False]
