"""Samples that lie end to end in one row train as samples padded side by side do, in every layout, dense and with STS.

Packing cuts a step's micro-batches otherwise, so its sums are taken in another order: the tolerances of
test_layouts.py hold. test_compression.py has packed samples where context meets tensor and sequence parallelism.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_sts.config import Recipe
from megatron_sts.parallel.groups import start_groups
from megatron_sts.train.stage_data import StageData, StepShape
from tests.parallel.observe import Observation, assert_same, observe_all
from tests.parallel.test_layouts import SMOOTH, STS
from tests.parallel.test_skipping_for_visual import VISUAL
from tests.ranks import run_ranks
from tests.tiny import tiny_recipe

STEPS = 2
PACKED = {"tune__data": {"packing": True}}
LAYOUTS = {
    "one process": (1, {}),
    "tp2_sp": (2, {"tensor": 2, "sequence_parallel": True}),
    "pp2_vp2": (2, {"pipeline": 2, "virtual_pipeline": 2}),
    "dp2": (2, {}),
    "cp2": (2, {"context": 2}),
    "pp3": (3, {"pipeline": 3, "layers_per_stage": [1, 2, 1]}),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("packing")


def recipe(root: Path, **changes: Any) -> Recipe:
    return tiny_recipe(root, **(SMOOTH | STS | {"tune__skip": [STS["tune__skip"], VISUAL]} | changes))


@pytest.fixture(scope="module")
def unpacked(root: Path) -> list[Observation]:
    """With STS, and dense; nothing recomputed."""
    return observe_all([recipe(root), tiny_recipe(root, **SMOOTH)], "tune", 1, STEPS)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_packed_trains_as_unpacked(root, unpacked, layout):
    ranks, parallel = LAYOUTS[layout]
    sts = recipe(root, parallel=parallel, recompute=["core_attn", "layernorm", "mlp"], **PACKED)
    dense = tiny_recipe(root, parallel=parallel, recompute="full", **(SMOOTH | PACKED))
    for found, expected in zip(observe_all([sts, dense], "tune", ranks, STEPS), unpacked, strict=True):
        assert_same(found, expected)


def test_other_packs_and_another_padding_give_the_same(root, unpacked):
    others = [
        recipe(root, tune__batch={"global": 8, "micro": micro}, parallel=parallel, **PACKED)
        for micro, parallel in ((4, {"tensor": 2}), (8, {"tensor": 2, "sequence_parallel": True}))
    ]
    for found in observe_all(others, "tune", 2, STEPS):
        assert_same(found, unpacked[0])


def _shapes(recipes: list[Recipe]) -> list[tuple[StepShape, list[list[int]], list[int], float]]:
    found = []
    for each in recipes:
        start_groups(each.parallel, each.seed)
        data = StageData(each, each.stage("tune"))
        plan = data.planner.dense_plan(0)
        samples = data.sampler.samples_of_step(0)
        lengths = data.index.lengths(plan.visual_tokens)
        micro_batches = data.micro_batches(0)
        assert sorted(index for places in micro_batches for index in places) == sorted(samples)
        of_rows = [[int(lengths[index]) for index in places] for places in micro_batches]
        found.append((data.shape(plan), of_rows, samples, data.flops(plan, data.shape(plan))[0].layers))
    return found


def test_a_packed_step_has_one_row_a_micro_batch_and_less_padding(root):
    recipes = [tiny_recipe(root), tiny_recipe(root, **PACKED)]
    (plain, _, samples, plain_flops), (packed, rows, same, packed_flops) = run_ranks(1, _shapes, recipes)[0]
    assert samples == same and (plain.rows, packed.rows) == (8, 4)
    assert plain.tokens == packed.tokens == sum(map(sum, rows))
    assert packed.length == max(map(sum, rows))
    assert packed.rows * packed.length < plain.rows * plain.length
    assert packed_flops < plain_flops
    for segments, row in zip(packed.segments, rows, strict=True):
        assert sum(segments) == packed.length and list(segments[: len(row)]) == row
    # Dealing out longest first leaves micro-batches that differ by less than one sample.
    assert np.ptp([sum(row) for row in rows]) <= max(max(row) for row in rows)
