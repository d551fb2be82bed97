"""Shows that the GPU benchmark's driver and the checks inside a process run, at a tiny size on this machine."""

import json
from typing import Any

from megatron_sts.config import Recipe, resolved_yaml
from tests.gpu import benchmark
from tests.gpu.inside import frozen, memory
from tests.ranks import run_ranks
from tests.tiny import tiny_recipe


def _inside(recipe: Recipe) -> tuple[dict[str, Any], dict[str, Any]]:
    return memory(recipe, 3), frozen(recipe, 2)


def test_the_checks_inside_a_process_count_what_is_frozen(tmp_path):
    data = {"text_tokens": 20}
    recipe = tiny_recipe(tmp_path, align__data=data, tune__data=data, tune__skip={"alpha": 0.5})
    ((held, found),) = run_ranks(1, _inside, recipe)
    assert held == {"early": 0, "late": 0, "steps": 3}
    assert found["frozen"] > 20 and found["unchanged"] and found["gradients"] == 0


def test_the_driver_writes_results_and_table(tmp_path, monkeypatch):
    recipe = tiny_recipe(tmp_path, tune__data={"text_tokens": 20}, tune__skip={"alpha": 0.5})
    file = tmp_path / "recipe.yaml"
    file.write_text(resolved_yaml(recipe))
    only = {"alpha 0.5": benchmark.SETTINGS["alpha 0.5"]}
    monkeypatch.setattr(benchmark, "SETTINGS", only)
    options = ["--recipe", str(file), "--plans", "1", "--repeats", "1", "--output", str(tmp_path / "out")]
    assert benchmark.main([*options, "precision=fp32"]) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert set(results["measured"]) == {"alpha 0.5|bf16"}
    assert "| tune | alpha 0.5 |" in (tmp_path / "out" / "table.md").read_text()
