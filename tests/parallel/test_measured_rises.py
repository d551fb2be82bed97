"""Shows that rises are measured where a skip asks for them, on any layout alike, stand in the checkpoint, and that a
resume on another layout goes on with the plan that they gave.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from megatron_sts.config import Recipe, checkpoint_root, read_run
from megatron_sts.train.stages import train
from tests.ranks import run_ranks
from tests.tiny import tiny_recipe

SKIPS = [
    {
        "alpha": 0.25,
        "by": "redundancy",
        "schedule": "constant",
        "skip_groups": 2,
        "protect_above": 9.0,
        "measure_every": 2,
    },
    {
        "alpha": 0.5,
        "by": "redundancy",
        "tokens": "visual",
        "schedule": "constant",
        "skip_groups": 2,
        "protect_above": 9.0,
    },
]


def _recipe(root: Path, name: str, **changes: Any) -> Recipe:
    # Large steps of the weights, so that what is measured later differs.
    return tiny_recipe(
        root,
        output_dir=str(root / name),
        tune__skip=SKIPS,
        tune__learning_rate={"projector": 1e-2, "language": 2e-2},
        optimizer={"epsilon": 1e-2},
        checkpoint={"every_steps": 1, "keep_last": 9},
        **changes,
    )


def _skipped(recipe: Recipe) -> list[Any]:
    lines = map(json.loads, (recipe.output_dir / "metrics.jsonl").read_text().splitlines())
    return [
        (line["step"], line["layers_skipped"], line["layers_skipped_for_visual"])
        for line in lines
        if line["stage"] == "tune"
    ]


def _measured(recipe: Recipe, step: int) -> list[list[tuple[int, tuple[float, ...]]]]:
    run = read_run(checkpoint_root(recipe) / f"tune-{step:08}")
    return [[(one.step, one.rises) for one in skip.rises] for skip in run.recipe.stage("tune").skip]


def test_a_resume_on_another_layout_goes_on_with_the_measured_plan(tmp_path):
    whole = _recipe(tmp_path, "whole", parallel={"tensor": 2, "sequence_parallel": True})
    run_ranks(2, train, whole)
    everything, visual = _measured(whole, 4)
    assert [step for step, _ in everything] == [0, 2] and [step for step, _ in visual] == [0]
    assert everything[0][1] != everything[1][1] and len(set(everything[0][1])) == 4
    # What a checkpoint says is what was known by then.
    assert _measured(whole, 2) == [everything[:1], visual]

    other = _recipe(tmp_path, "other", parallel={"pipeline": 2})
    shutil.copytree(whole.output_dir, other.output_dir)
    for step in (2, 3, 4):
        shutil.rmtree(checkpoint_root(other) / f"tune-{step:08}")
    run_ranks(2, train, other)
    assert _skipped(other) == _skipped(whole)
    found_everything, found_visual = _measured(other, 4)
    # Measured before, so the same; measured again on the other layout, so equal up to the rounding of the losses.
    assert found_visual == visual and found_everything[0] == everything[0]
    assert found_everything[1][1] == pytest.approx(everything[1][1], abs=2e-4)
