"""Shows which ways a benchmark compares, what it refuses, and its figures worked out by hand."""

import re
from pathlib import Path

import pytest

from megatron_sts.config import Recipe, load_recipe
from megatron_sts.errors import ConfigError
from megatron_sts.train.comparison import Comparison, check_comparison, check_compression, summary, table
from tools import benchmark

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
EXAMPLE = EXAMPLES / "benchmark_skipping" / "sts.yaml"
COMPRESSING = EXAMPLES / "benchmark_compression" / "sts.yaml"


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load_recipe(EXAMPLE, check_files=False)


def test_ways_differ_in_the_sparsity_alone(recipe):
    comparison = Comparison("tune", ("dense", "sts", "independent", "balanced"))
    dense = comparison.recipe_of("dense", recipe).stage("tune")
    assert not dense.skip and dense.compress is None
    sts = comparison.recipe_of("sts", recipe).stage("tune")
    assert sts.skip[0].selection == "balanced" and sts.skip[0].skip_groups == (4, 4)
    assert comparison.recipe_of("balanced", recipe).stage("tune") == sts
    independent = comparison.recipe_of("independent", recipe).stage("tune")
    assert independent.skip[0].selection == "independent" and independent.skip[0].skip_groups is None
    assert independent.model_copy(update={"skip": ()}) == dense


def test_steps_follow_from_epochs_and_samples(recipe):
    # 16,000 samples in batches of 32.
    assert Comparison("tune", ("dense", "sts")).total_steps(recipe) == 500


@pytest.mark.parametrize(
    ("overrides", "comparison", "part"),
    [
        ([], Comparison("tune", ("sts", "balanced")), "--compare is 'sts,balanced'; give dense and at least one other"),
        ([], Comparison("tune", ("dense", "fast")), "of dense, sts, balanced, independent"),
        ([], Comparison("tune", ("dense", "sts"), plans=0), "--plans is 0; give at least 1"),
        ([], Comparison("align", ("dense", "sts")), "the recipe has no stage 'align'"),
        (
            ["stages.tune.data.text_tokens=null"],
            Comparison("tune", ("dense", "sts")),
            "stages.tune.data.text_tokens is",
        ),
        (
            ["stages.tune.data.samples=null"],
            Comparison("tune", ("dense", "sts")),
            "stages.tune.data.samples is not set",
        ),
        (["stages.tune.skip=null"], Comparison("tune", ("dense", "balanced")), "stages.tune has no skip"),
    ],
)
def test_what_cannot_be_compared_is_refused(overrides, comparison, part):
    recipe = load_recipe(EXAMPLE, overrides, check_files=False)
    with pytest.raises(ConfigError) as caught:
        check_comparison(comparison, recipe)
    assert part in str(caught.value)


def test_retained_saving_is_the_share_of_the_ideal_saving():
    figures = {
        "dense": {"step_time_s": 10.0, "flops": 100.0, "peak_memory_bytes": 2**30},
        "sts": {"step_time_s": 6.0, "flops": 50.0, "peak_memory_bytes": 2**30},
        "independent": {"step_time_s": 9.0, "flops": 50.0, "peak_memory_bytes": 2**30},
    }
    result = summary(figures)
    # 0.4 of the time is saved where half of the FLOPs are.
    assert result["retained_saving"] == pytest.approx(0.8)
    assert result["speedup"] == pytest.approx(10 / 6) and result["ideal_speedup"] == pytest.approx(2.0)
    assert result["runs"]["independent"]["retained_saving"] == pytest.approx(0.2)
    assert result["runs"]["dense"]["retained_saving"] is None
    shown = table(
        result
        | {"stage": "tune", "device": "CPU", "layout": {"tensor": 1, "pipeline": 2, "virtual_pipeline": 1, "data": 1}}
    )
    assert "0.800" in shown and "0.200" in shown


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("parallel={}", "set tensor or context: 2 or more"),
        ("parallel.pipeline=2", "and pipeline: 1"),
        ("stages.align.compress={strategy: mean_pool}", "set its strategy to uniform, random or text_guided"),
        ("stages.align.trains=[projector, language]", "set trains: [projector]"),
    ],
)
def test_the_compression_suite_refuses_what_it_does_not_measure(override, part):
    overrides = [override]
    if "language" in override:
        overrides.append("stages.align.learning_rate.language=1.0e-3")
    recipe = load_recipe(COMPRESSING, overrides, check_files=False)
    with pytest.raises(ConfigError, match=re.escape(part)):
        check_compression(Comparison("align", ("sts",)), recipe)


def test_the_packing_suite_takes_a_stage_without_sparsity_and_planned_sizes():
    overrides = ["stages.tune.skip=null", "stages.tune.data.samples=null", "stages.tune.data.text_tokens=null"]
    recipe = load_recipe(EXAMPLE, overrides, check_files=False)
    asked = ["--config", str(EXAMPLE), "--suite", "packing", "--plans"]
    assert benchmark.comparison_of(recipe, benchmark.parse([*asked, "3"])) == Comparison("tune", (), plans=3)
    with pytest.raises(ConfigError, match="--plans is 0; give at least 1"):
        benchmark.comparison_of(recipe, benchmark.parse([*asked, "0"]))


def test_timed_steps_are_the_middles_of_equal_parts():
    assert Comparison("tune", (), plans=3).steps(12) == [2, 6, 10]


def test_a_file_that_cannot_be_written_is_named_before_anything_is_measured(tmp_path, capsys):
    output = tmp_path / "missing" / "result.json"
    assert benchmark.main(["--config", str(EXAMPLE), "--compare", "dense,sts", "--output", str(output)]) == 2
    assert f"--output {output} cannot be written (No such file or directory)" in capsys.readouterr().err
