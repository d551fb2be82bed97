"""Shows that the packing suite times the data's own steps, padded and packed, in layouts too."""

from typing import Any

import pytest

from megatron_sts.config import Recipe
from megatron_sts.data.padding import describe_steps
from megatron_sts.train.comparison import Comparison, packing_table
from megatron_sts.train.packing_benchmark import measure_packing
from megatron_sts.train.stage_data import StageData
from tests.ranks import run_ranks
from tests.tiny import tiny_recipe


def _measure(recipes: list[Recipe]) -> list[dict[str, Any]]:
    # More steps than the epoch of two has.
    comparison = Comparison("tune", (), plans=6, repeats=1, warm_up=0)
    return [measure_packing(recipe, comparison, lambda text: None) for recipe in recipes]


def test_padding_is_that_of_the_datas_steps(tmp_path):
    layouts: list[dict[str, Any]] = [{"pipeline": 2}, {"context": 2}]
    recipes = [
        tiny_recipe(
            tmp_path,
            parallel=layout,
            tune__epochs=1,
            tune__steps=None,
            tune__batch={"global": 12, "micro": 6},
            tune__data={"packing": True},
        )
        for layout in layouts
    ]
    one, other = run_ranks(2, _measure, recipes)
    assert one == other
    for recipe, found in zip(recipes, one, strict=True):
        data = StageData(recipe, recipe.stage("tune"))
        expected = describe_steps(recipe, recipe.stage("tune"), data.index, 16)["padding"]
        padded, packed = found["runs"]["padded"], found["runs"]["packed"]
        assert padded["padding"] == pytest.approx(expected["neither"])
        assert packed["padding"] == pytest.approx(expected["packing"])
        tokens = data.index.lengths(16).sum()
        for run in (padded, packed):
            assert run["tokens_per_second"] * run["step_time_s"] * 2 == pytest.approx(tokens)
            assert run["peak_memory_bytes"] > 2**20
        assert found["speedup"] == pytest.approx(padded["step_time_s"] / packed["step_time_s"])
        assert found["steps"] == 2
        assert "packed is" in packing_table(found)
