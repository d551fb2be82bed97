"""Shows that the model card has the recipe, and of the saving what the run recorded up to the checkpoint: no more."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_sts.config import Run
from megatron_sts.hf.card import model_card
from megatron_sts.hf.saving import StageSaving, measured_savings
from tests.unit.hf.tiny_llava import architecture, make_recipe


@pytest.fixture
def run(tmp_path: Path) -> Run:
    recipe = make_recipe(architecture("clip"), None, None).model_copy(update={"output_dir": tmp_path})
    return Run("tune", 2, recipe, {"torch": "2.13"})


def line(stage: str, step: int, **changes: Any) -> str:
    record = {
        "stage": stage,
        "step": step,
        "flops_executed": 6e12,
        "flops_dense": 8e12,
        "visual_tokens_kept": 4,
        "visual_tokens_total": 16,
        "layers_skipped": [],
        "step_time_s": 1800.0,
        "dropped_step": False,
    }
    return json.dumps(record | changes)


def write(run: Run, *lines: str) -> None:
    (run.recipe.output_dir / "metrics.jsonl").write_text("\n".join(lines))


def test_savings_are_summed_by_stage_up_to_the_checkpoint(run: Run) -> None:
    write(
        run,
        *(line("align", step) for step in range(1, 11)),
        line("tune", 1, layers_skipped=[1, 2], layers_skipped_for_visual=[0], visual_tokens_kept=16),
        line("tune", 2, layers_skipped=[0], visual_tokens_kept=16, flops_executed=8e12, dropped_step=True),
        # After the checkpoint, then a line that a killed run was writing.
        line("tune", 3, flops_executed=1.0),
        '{"stage": "tu',
    )
    align, tune = measured_savings(run)
    assert align == StageSaving("align", 10, 10, 6e13, 8e13, 0.75, 0.0, 0.0, 18000.0, 0)
    # 3 of 2 x 3 layer runs, and 1 for visual tokens; a line of an earlier version has no such key.
    assert tune == StageSaving("tune", 2, 2, 1.4e13, 1.6e13, 0.0, 0.5, 1 / 6, 3600.0, 1)
    card = model_card("model", run, "float32")
    assert "| align | 10 | 6.000e+13 | 25.0% | 75.0% | 0.0% | 0.0% | 5 | 0 |" in card
    assert "| tune | 2 | 1.400e+13 | 12.5% | 0.0% | 50.0% | 16.7% | 1 | 1 |" in card


def test_a_record_with_gaps_says_how_much_it_covers(run: Run) -> None:
    write(run, line("align", 7), line("tune", 2), '{"stage": "tune", "step": 1}')
    assert [(saving.stage, saving.steps, saving.expected_steps) for saving in measured_savings(run)] == [
        ("align", 1, 10),
        ("tune", 1, 2),
    ]
    assert "| align | 1 of 10 |" in model_card("model", run, "float32")


def test_without_a_record_no_figure_is_given(run: Run) -> None:
    assert measured_savings(run) == []
    assert "was not recorded" in model_card("model", run, "float32")


def test_the_card_has_the_whole_recipe_and_every_setting_of_the_sparsity(run: Run) -> None:
    card = model_card("model", run, "bfloat16")
    recipe = card.split("```yaml\n")[1].split("```")[0]
    assert yaml.safe_load(recipe) == run.recipe.resolved()
    assert "| compressed: strategy uniform, keep_ratio 0.5 | all |" in card
    assert "skipped: tokens all, alpha 0.5, by depth, epsilon 0.25, protect_above 0.5, progress step, " in card
    assert "stage `tune`, step 2; exported in bfloat16" in card


def test_a_dense_run_is_not_called_sparse(run: Run) -> None:
    dense = tuple(stage.model_copy(update={"skip": (), "compress": None}) for stage in run.recipe.stages)
    card = model_card("model", Run("tune", 2, run.recipe.model_copy(update={"stages": dense}), {}), "float32")
    assert "Sparse Training Scheme" not in card
    assert "Sparse Training Scheme" in model_card("model", run, "float32")


def test_weights_that_were_only_imported_are_not_called_trained(run: Run) -> None:
    recipe = run.recipe.model_copy(update={"stages": ()})
    card = model_card("model", Run("import", 0, recipe, {}), "float32")
    assert "not trained by it" in card
    assert "these are the imported weights" in card
    assert "Sparse Training Scheme" not in card
