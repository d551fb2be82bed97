"""Shows that training follows the plan that tools/plan.py prints before it, and prints after it on another layout."""

import json
from typing import Any

from megatron_sts.config import Recipe
from megatron_sts.planning import step_records
from megatron_sts.train.stages import train
from tests.ranks import run_ranks
from tests.tiny import tiny_recipe


def _planned(recipe: Recipe) -> list[dict[str, Any]]:
    return list(step_records(recipe, 10**6))


def test_metrics_have_the_planned_steps(tmp_path):
    recipe = tiny_recipe(
        tmp_path,
        parallel={"pipeline": 2},
        align__compress={"keep_tokens": 5},
        tune__steps=None,
        tune__epochs=2,
        tune__skip=[{"alpha": 0.7, "epsilon": 0.3}, {"tokens": "visual", "alpha": 0.75, "schedule": "constant"}],
    )
    planned = _planned(recipe)
    run_ranks(2, train, recipe)
    lines = [json.loads(line) for line in (recipe.output_dir / "metrics.jsonl").read_text().splitlines()]
    # 24 records in steps of 8.
    assert [(line["stage"], line["step"]) for line in lines] == [
        *(("align", step) for step in range(1, 4)),
        *(("tune", step) for step in range(1, 7)),
    ]
    assert [(plan["stage"], plan["step"]) for plan in planned] == [(line["stage"], line["step"]) for line in lines]
    assert [plan["layers_skipped"] for plan in planned] == [line["layers_skipped"] for line in lines]
    assert len({tuple(plan["layers_skipped"]) for plan in planned}) > 3
    key = "layers_skipped_for_visual"
    assert [plan[key] for plan in planned] == [line[key] for line in lines]
    assert sum(map(bool, (line[key] for line in lines))) > 3
    total = recipe.architecture.visual_tokens
    for plan, line in zip(planned, lines, strict=True):
        assert line["visual_tokens_kept"] * total == plan["visual_tokens"] * line["visual_tokens_total"]

    # Its groups are the run's, whatever the layout that it goes on with; a fresh run on that layout has others.
    parallel = recipe.parallel.model_copy(update={"pipeline": 1})
    alone = recipe.model_copy(update={"parallel": parallel})
    assert _planned(alone) == planned
    assert _planned(alone.model_copy(update={"output_dir": tmp_path / "fresh"})) != planned
