"""A stopped run goes on as if it had not stopped: losses, weights, learning rates, also on another layout."""

import json
import random
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from megatron.core.tensor_parallel import get_cuda_rng_tracker

from megatron_sts.config import Recipe, checkpoint_root, newest_runs
from megatron_sts.errors import CheckpointError
from megatron_sts.parallel.groups import start_groups
from megatron_sts.train.loop import prepare_stage
from megatron_sts.train.resume import find_start
from megatron_sts.train.stage_data import StageData
from megatron_sts.train.stages import train
from megatron_sts.train.step import TrainStep
from tests.ranks import RankFailed, run_ranks
from tests.tiny import tiny_recipe

STS = {"tune__skip": {"alpha": 0.6, "epsilon": 0.4}, "align__compress": {"strategy": "random", "keep_ratio": 0.5}}
EVERY = {"checkpoint": {"every_steps": 2, "keep_last": 9}}
OVERLAP = {"overlap_grad_reduce": True, "overlap_param_gather": True, "bucket_parameters": 3000}
KEPT = (
    "stage",
    "step",
    "loss",
    "grad_norm",
    "learning_rate",
    "layers_skipped",
    "layers_skipped_for_visual",
    "sequence_length",
    "visual_tokens_kept",
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("resume")


def _train(recipe: Recipe, ranks: int = 1, stage: str | None = None) -> list[dict[str, Any]]:
    run_ranks(ranks, train, recipe, stage)
    return _metrics(recipe)


def _metrics(recipe: Recipe) -> list[dict[str, Any]]:
    lines = (recipe.output_dir / "metrics.jsonl").read_text().splitlines()
    return [{key: json.loads(line)[key] for key in KEPT} for line in lines]


def _cut_back(recipe: Recipe, output: Path, keep: set[str]) -> None:
    """A copy of a finished run as a kill would have left it: only the named checkpoints, all of metrics.jsonl."""
    shutil.copytree(recipe.output_dir, output)
    for checkpoint in (output / "checkpoints").glob("*-*"):
        if checkpoint.name not in keep:
            shutil.rmtree(checkpoint)


@pytest.mark.parametrize(
    ("ranks", "layout"),
    [
        (1, {}),
        (2, {"optimizer": {"distributed": True}}),
        (2, {"parallel": {"tensor": 2, "sequence_parallel": True}}),
        (2, {"parallel": {"pipeline": 2, "virtual_pipeline": 2}}),
        (2, {"precision": "bf16"}),
        (2, {"precision": "bf16", "optimizer": {"distributed": True}, "parallel": OVERLAP}),
        (1, {"optimizer": {"kind": "sgd"}}),
    ],
    ids=["one", "dp2_distributed", "tp2_sp", "pp2_vp2", "dp2_bf16", "dp2_bf16_distributed_overlap", "sgd"],
)
def test_resume_within_and_across_stages_equals_the_uninterrupted_run(root, tmp_path, ranks, layout):
    whole = tiny_recipe(root, output_dir=str(tmp_path / "whole"), **STS, **EVERY, **layout)
    expected = _train(whole, ranks)
    assert [(line["stage"], line["step"]) for line in expected] == [
        *(("align", step) for step in (1, 2, 3)),
        *(("tune", step) for step in (1, 2, 3, 4)),
    ]
    assert any(line["layers_skipped"] for line in expected)
    kept = {"in_align": {"align-00000002"}, "in_tune": {"align-00000003", "tune-00000002"}}
    if ranks == 1:
        # Elsewhere the run that goes on in align passes the boundary too.
        kept["between"] = {"align-00000003"}
    for name, keep in kept.items():
        _cut_back(whole, tmp_path / name, keep)
        resumed = whole.model_copy(update={"output_dir": tmp_path / name})
        assert _train(resumed, ranks) == expected, name


def test_training_a_finished_run_again_does_nothing(root, tmp_path):
    recipe = tiny_recipe(root, output_dir=str(tmp_path / "run"))
    before = _train(recipe)
    files = sorted(checkpoint_root(recipe).iterdir())
    assert _train(recipe) == before
    assert sorted(checkpoint_root(recipe).iterdir()) == files


# Groups that any of the layouts below can have.
GROUPED = STS | {"tune__skip": STS["tune__skip"] | {"skip_groups": 2}}
ON, OFF = {"distributed": True, "epsilon": 1e-2}, {"epsilon": 1e-2}
FULL = {"tensor": 2, "pipeline": 2, "sequence_parallel": True}


@pytest.mark.parametrize(
    ("optimizer", "parallel", "others"),
    [
        (OFF, FULL, {"tp2": (2, OFF, {"tensor": 2}), "one": (1, OFF, {}), "dp2_on": (2, ON, {})}),
        (
            ON,
            {"tensor": 2},
            {"cp2": (2, ON, {"context": 2}), "one_off": (1, OFF, {}), "pp2_off": (2, OFF, {"pipeline": 2})},
        ),
    ],
    ids=["plain", "distributed"],
)
def test_checkpoint_resumes_on_another_layout_and_optimizer_with_the_same_plan(
    root, tmp_path, optimizer, parallel, others
):
    whole = tiny_recipe(
        root,
        output_dir=str(tmp_path / "whole"),
        parallel=parallel,
        optimizer=optimizer,
        **GROUPED,
        **EVERY,
    )
    expected = _train(whole, 4)
    for name, (ranks, other_optimizer, other_parallel) in others.items():
        _cut_back(whole, tmp_path / name, {"align-00000003", "tune-00000002"})
        other = tiny_recipe(
            root,
            output_dir=str(tmp_path / name),
            parallel=other_parallel,
            optimizer=other_optimizer,
            **GROUPED,
            **EVERY,
        )
        found = _train(other, ranks)
        for one, two in zip(found, expected, strict=True):
            assert one["loss"] == pytest.approx(two["loss"], rel=1e-6), name
            assert one["layers_skipped"] == two["layers_skipped"]
            assert one["learning_rate"] == two["learning_rate"]


def _rates_after_loading(recipe: Recipe) -> list[tuple[float, float]]:
    place = start_groups(recipe.parallel, recipe.seed)
    stage = recipe.stage("tune")
    total = StageData(recipe, stage).total_steps
    parts = prepare_stage(recipe, stage, total, find_start(recipe, 1), place)
    return parts.optimizer.learning_rates()


def test_each_part_has_its_own_learning_rate_after_a_resume(root, tmp_path):
    recipe = tiny_recipe(root, output_dir=str(tmp_path / "run"), **EVERY)
    _train(recipe)
    shutil.rmtree(checkpoint_root(recipe) / "tune-00000004")
    rates = run_ranks(1, _rates_after_loading, recipe)[0]
    # Step 3 of 4, no warm-up: half a cosine over 5 counts, at count 3.
    import math

    factor = 0.5 * (1 + math.cos(math.pi * 3 / 5))
    assert {highest for highest, _ in rates} == {1e-2, 2e-3}
    for highest, rate in rates:
        assert rate == pytest.approx(highest * factor)


def _generators_that_moved(recipe: Recipe) -> list[str]:
    """Which of the random generators that a library could draw from has another state after a step than before it."""
    original, moved = TrainStep.run, set()

    def states() -> dict[str, Any]:
        found = get_cuda_rng_tracker().get_states() | {"torch": torch.get_rng_state()}
        of_numpy = np.random.get_state()[1].tobytes()
        return {"python": random.getstate(), "numpy": of_numpy} | {
            name: state.numpy().tobytes() for name, state in found.items()
        }

    def run(self: TrainStep, *arguments: Any, **named: Any) -> Any:
        before = states()
        result = original(self, *arguments, **named)
        moved.update(name for name, state in states().items() if state != before[name])
        return result

    with mock.patch.object(TrainStep, "run", run):
        train(recipe)
    return sorted(moved)


def test_no_step_draws_from_a_random_generator(root, tmp_path):
    # So that a checkpoint need not hold their states, which would not fit another layout.
    layout = {"parallel": {"tensor": 2, "sequence_parallel": True}, "recompute": "full"}
    trained = {"tune__trains": ["projector", "language", "vision"], "tune__learning_rate": {"vision": 1e-3}}
    short = {"align__steps": 1, "tune__steps": 2}
    recipe = tiny_recipe(root, output_dir=str(tmp_path / "run"), **STS, **layout, **trained, **short)
    assert run_ranks(2, _generators_that_moved, recipe) == [[], []]


def test_resume_under_another_recipe_is_refused_by_field(root, tmp_path):
    recipe = tiny_recipe(root, output_dir=str(tmp_path / "run"))
    _train(recipe)
    for changes, field in (
        ({"seed": 6}, "seed"),
        ({"tune__skip": {"alpha": 0.2}}, "stages.tune.skip"),
        ({"tune__batch": {"global": 4}}, "stages.tune.batch.global"),
    ):
        other = tiny_recipe(root, output_dir=str(tmp_path / "run"), **changes)
        with pytest.raises(CheckpointError, match=field):
            find_start(other, 1)
    moved = tiny_recipe(
        root, output_dir=str(tmp_path / "run"), tune__batch={"micro": 1}, align__epochs=2, align__steps=None
    )
    assert find_start(moved, 1).step == 4
    stages = tuple(stage.model_copy(update={"name": f"new_{stage.name}"}) for stage in recipe.stages)
    with pytest.raises(CheckpointError, match=r"holds another run: tune-00000004.*new_align, new_tune.*model.init"):
        newest_runs(recipe.model_copy(update={"stages": stages}))


def test_stage_alone_wants_the_stage_before_it(root, tmp_path):
    recipe = tiny_recipe(root, output_dir=str(tmp_path / "run"), **EVERY)
    with pytest.raises(RankFailed, match="has no checkpoint of align; train it first"):
        run_ranks(1, train, recipe, "tune")
    _train(recipe, stage="align")
    shutil.rmtree(checkpoint_root(recipe) / "align-00000003")
    with pytest.raises(RankFailed, match="has done 2 of 3 steps"):
        run_ranks(1, train, recipe, "tune")
    _train(recipe, stage="align")
    assert len(_train(recipe, stage="tune")) == 7


def test_no_stage_begins_from_an_older_checkpoint_than_the_end_of_the_one_before(root, tmp_path):
    checkpoint = {"every_steps": 1, "keep_last": 9, "allow_older": True}
    recipe = tiny_recipe(root, output_dir=str(tmp_path / "run"), checkpoint=checkpoint)
    _train(recipe, stage="align")
    newest = next((checkpoint_root(recipe) / "align-00000003").glob("*.distcp"))
    newest.write_bytes(bytes(newest.stat().st_size))
    # The older one may be gone on from, to the end of its own stage; another stage may not begin there.
    with pytest.raises(RankFailed, match="stage align has done 2 of 3 steps"):
        run_ranks(1, train, recipe, "tune")
    assert [(line["stage"], line["step"]) for line in _train(recipe)][:4] == [
        *(("align", step) for step in (1, 2, 3)),
        ("tune", 1),
    ]


def test_only_the_newest_checkpoints_are_kept(root, tmp_path):
    recipe = tiny_recipe(root, output_dir=str(tmp_path / "run"), checkpoint={"every_steps": 1, "keep_last": 2})
    _train(recipe)
    names = sorted(path.name for path in checkpoint_root(recipe).glob("*-*"))
    assert names == ["align-00000002", "align-00000003", "tune-00000003", "tune-00000004"]
