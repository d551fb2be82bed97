"""Shows that the GPU benchmark's driver and the checks inside a process run, at a tiny size on this machine."""

import json
from typing import Any

import pytest

from megatron_sts.config import Recipe, load_recipe, resolved_yaml
from tests.gpu import benchmark
from tests.gpu.inside import frozen, memory, padding, quick, weight_gradients
from tests.gpu.measure import profile_step
from tests.ranks import run_ranks
from tests.tiny import tiny_recipe


def _inside(recipe: Recipe) -> tuple[list[dict[str, Any]], str]:
    checks = ((memory, 3), (frozen, 2), (weight_gradients, 2), (padding, 2), (quick, 2))
    return [check(recipe, steps) for check, steps in checks], profile_step(recipe, "tune", "alpha 1.0, 144 tokens", 1)


def test_the_checks_inside_a_process_find_what_they_look_for(tmp_path):
    data = {"text_tokens": 20}
    recipe = tiny_recipe(tmp_path, align__data=data, tune__data=data, tune__skip={"alpha": 0.5})
    (((held, still, products, padded, steps), profiled),) = run_ranks(1, _inside, recipe)
    assert held == {"early": 0, "late": 0, "steps": 3}
    assert still["frozen"] > 20 and still["unchanged"] and still["gradients"] == 0
    # Four products in each of four layers and the output layer; one more for each gradient.
    assert products == {"forward": 17, "frozen": 2 * 17, "trained": 3 * 17}
    assert padded["added"] == 64 and padded["loss"] < 1e-6 and padded["gradient"] < 1e-5
    assert padded["gradient_of_others"] > 0.5
    assert steps["again"] == pytest.approx(steps["losses"], rel=1e-6) and steps["moved"] and steps["still"]
    assert steps["losses"][0] < steps["first"][0]
    assert "matrix product" in profiled and "aten::mm" in profiled


def test_the_driver_writes_results_and_table_and_profiles_what_missed_its_goal(tmp_path, monkeypatch):
    recipe = tiny_recipe(tmp_path, tune__data={"text_tokens": 20}, tune__skip={"alpha": 0.5})
    file, output = tmp_path / "recipe.yaml", tmp_path / "out"
    file.write_text(resolved_yaml(recipe))
    monkeypatch.setattr(benchmark, "RUNS", {"bf16": [("tune", "bf16")]})
    options = ["--recipe", str(file), "--plans", "1", "--repeats", "1", "--output", str(output), "precision=fp32"]
    assert benchmark.main(options) == 0
    results = json.loads((output / "results.json").read_text())
    assert set(results["measured"]) == {"tune|bf16"} and len(results["measured"]["tune|bf16"]["runs"]) == 5
    table = (output / "table.md").read_text()
    assert (
        "| tune | alpha 0.5 |" in table
        and "| tune: dense bf16, share of 989 TFLOP/s | 0.45 | 0.000 | missed |" in table
    )
    profiled = []
    monkeypatch.setattr(benchmark.Driver, "_run", lambda driver, *run: profiled.append(run) or True)
    assert benchmark.main([*options, "--part", "profile"]) == 0
    assert profiled[0] == ("tune", "bf16", output / "profile_tune_dense_bf16.txt", ["--profile", "dense"])


def test_a_device_of_80_gb_takes_half_the_layers():
    (fewer,) = benchmark.layers_that_fit(85_000_000_000)
    assert load_recipe(benchmark.RECIPE, [fewer], check_files=False).architecture.language.layers == 8
    assert benchmark.layers_that_fit(150_000_000_000) == []
