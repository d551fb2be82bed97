"""Shows that validation measures the model as it will be used, on samples that are not trained on, the same on every
layout, whatever is sparse in training; and that training goes on as if nothing had been measured.

Tolerance: fp32 sums in another order move a loss by about 1e-7 of itself, and so move the weights of the steps before.
"""

import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from megatron_sts.config import Recipe, best_checkpoint, list_checkpoints, prune
from megatron_sts.train.saver import Saver
from megatron_sts.train.stages import train
from tests.ranks import run_ranks
from tests.tiny import tiny_recipe

SPARSE: dict[str, Any] = {
    "tune__skip": {"alpha": 0.5, "schedule": "constant", "skip_groups": 2},
    "tune__compress": {"keep_ratio": 0.5},
}


def lines_of(recipe: Recipe) -> list[dict[str, Any]]:
    lines = map(json.loads, (recipe.output_dir / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["stage"] == "tune"]


def trained(root: Path, name: str, ranks: int = 1, **changes: Any) -> list[dict[str, Any]]:
    recipe = tiny_recipe(root, output_dir=str(root / name), align__steps=1, **changes)
    run_ranks(ranks, train, recipe)
    return lines_of(recipe)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("validation")
    tiny_recipe(root)
    shutil.copy(root / "train.json", root / "held_out.json")
    return root


def _train_until(recipe: Recipe, step: int) -> None:
    """Stop by the checkpoint of a step, as a killed run does."""
    save = Saver.save

    def last_save(saver: Saver, done: int, is_needed: bool, validation_loss: float | None = None) -> None:
        save(saver, done, is_needed=True, validation_loss=validation_loss)
        if done == step:
            raise KeyboardInterrupt

    with mock.patch.object(Saver, "save", last_save), suppress(KeyboardInterrupt):
        train(recipe)


FILE: dict[str, Any] = {"validation": {"every_steps": 2, "samples": 7}, "tune__data": {"validation": "held_out.json"}}


def changes_of(root: Path, **changes: Any) -> dict[str, Any]:
    found = FILE | {"tune__data": {"validation": str(root / "held_out.json")}}
    return found | changes


@pytest.fixture(scope="module")
def alone(root: Path) -> list[dict[str, Any]]:
    return trained(root, "alone", **changes_of(root, **SPARSE))


def test_losses_stand_in_the_steps_that_were_asked_for(alone):
    measured = [line["step"] for line in alone if line["validation_loss"] is not None]
    assert measured == [2, 4]
    assert all(line["validation_loss_sparse"] != line["validation_loss"] for line in alone if line["step"] in measured)
    assert alone[-1]["validation_loss"] < alone[1]["validation_loss"]


def test_training_goes_on_as_if_nothing_had_been_measured(root, alone):
    plain = trained(root, "plain", **SPARSE)
    assert [line["loss"] for line in plain] == [line["loss"] for line in alone]
    assert all(line["validation_loss"] is None for line in plain)


def test_a_dense_step_has_one_loss(root):
    (_, second, _, last) = trained(root, "dense", **changes_of(root))
    assert second["validation_loss"] is not None and last["validation_loss_sparse"] is None


@pytest.mark.parametrize(
    ("ranks", "parallel"), [(2, {"tensor": 2, "sequence_parallel": True}), (4, {"pipeline": 2}), (2, {"context": 2})]
)
def test_losses_are_equal_on_every_layout(root, alone, ranks, parallel):
    changes = changes_of(root, parallel=parallel, **SPARSE)
    found = trained(root, f"on_{next(iter(parallel))}", ranks, **changes)
    for name in ("validation_loss", "validation_loss_sparse"):
        assert [line[name] for line in found if line["step"] % 2 == 0] == pytest.approx(
            [line[name] for line in alone if line["step"] % 2 == 0], rel=1e-5
        )


def test_the_best_checkpoint_is_kept_over_a_resume_on_another_layout(root):
    changes = changes_of(root, keep_best=True, checkpoint={"every_steps": 1, "keep_last": 1}, tune__steps=6)
    # So high a rate that the loss only falls at first: the best is not the last.
    steep = {
        "tune__learning_rate": {"projector": 1e-2, "language": 0.3},
        "tune__learning_rate_schedule": {"decay": "constant"},
    }
    recipe = tiny_recipe(root, output_dir=str(root / "best"), align__steps=1, **changes, **steep)
    run_ranks(1, _train_until, recipe, 4)
    run_ranks(2, train, recipe.model_copy(update={"parallel": recipe.parallel.model_copy(update={"tensor": 2})}))
    losses = {line["step"]: line["validation_loss"] for line in lines_of(recipe)}
    assert sorted(losses) == [1, 2, 3, 4, 5, 6] and None not in losses.values()
    best = min(losses, key=lambda step: losses[step])
    listed = {(one.stage, one.step): one for one in list_checkpoints(recipe.output_dir, hashes=False)}
    assert sorted(listed) == sorted({("align", 1), ("tune", best), ("tune", 6)})
    assert best < 4 and listed["tune", best].is_best and not listed["tune", 6].is_best
    assert listed["tune", best].validation_loss == losses[best]
    assert best_checkpoint(recipe.output_dir) == listed["tune", best].path
    assert prune(recipe.output_dir, 1, None, only_show=True) == []


def test_a_share_of_the_records_is_not_trained_on(root):
    skip = {"alpha": 0.5, "schedule": "constant", "full_share": 0.5, "distill": 1.0}
    share = changes_of(root, tune__data={"validation": 0.25}, tune__steps=None, tune__epochs=1.0, tune__skip=skip)
    lines = trained(root, "share", **share)
    # 24 records, 6 of them held out: two steps of 8 in one epoch of 18.
    assert len(lines) == 2 and lines[-1]["validation_loss"] is not None
    # One step of the two is full, learns from the sparse one, and pays for its forward pass.
    (full,) = (line for line in lines if line["distill_loss"] is not None)
    assert full["distill_loss"] > 0 and full["flops_executed"] > full["flops_dense"] and not full["layers_skipped"]
