"""Shows that the benchmark times the ways over the same steps, and counts FLOPs and layers as training does."""

from typing import Any

import pytest

from megatron_sts.config import Recipe
from megatron_sts.train.benchmark import compare
from megatron_sts.train.comparison import Comparison
from tests.ranks import run_ranks
from tests.tiny import tiny_recipe

WAYS = ("dense", "sts", "independent")


def _compare(recipe: Recipe) -> dict[str, Any]:
    return compare(recipe, Comparison("tune", WAYS, plans=3, repeats=2, warm_up=1), lambda text: None)


def test_comparison_runs_on_a_pipeline_and_gives_every_figure(tmp_path):
    recipe = tiny_recipe(
        tmp_path,
        parallel={"pipeline": 2},
        tune__data={"text_tokens": 20},
        tune__skip={"alpha": 0.5, "schedule": "constant"},
        tune__compress={"keep_ratio": 0.5},
    )
    one, other = run_ranks(2, _compare, recipe)
    assert one == other
    runs = one["runs"]
    assert set(runs) == set(WAYS)
    for run in runs.values():
        assert run["step_time_s"] > 0 and run["peak_memory_bytes"] > 2**20
    dense, sts = runs["dense"], runs["sts"]
    # 16 visual tokens of which 8 are kept, behind 20 of text; two groups of two layers skip one each.
    assert (dense["visual_tokens"], dense["sequence_length"], dense["layers_skipped"]) == (16, 36, 0)
    assert (sts["visual_tokens"], sts["sequence_length"], sts["layers_skipped"]) == (8, 28, 2)
    assert one["ideal_speedup"] == pytest.approx(dense["flops"] / sts["flops"])
    assert one["speedup"] == pytest.approx(dense["step_time_s"] / sts["step_time_s"])
    assert one["layout"]["pipeline"] == 2 and one["layout"]["data"] == 1
