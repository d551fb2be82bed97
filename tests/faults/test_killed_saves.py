"""Saves that are killed at each of their points: runs go on from the newest whole checkpoint to the same losses."""

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from megatron_sts.config import LATEST_FILE, Recipe, checkpoint_root, problems_of, write_latest
from megatron_sts.train import checkpoint_directory, checkpoint_state
from megatron_sts.train.checkpoint_save import CheckpointSave
from megatron_sts.train.stages import train
from tests.parallel.test_resume import _metrics
from tests.ranks import run_ranks, run_until_ended
from tests.tiny import tiny_recipe

# One layer and few tensors: each is a point to be killed at. Of a stage's three checkpoints the last removes the first.
SMALL = {
    "tune__steps": 3,
    "align__steps": 1,
    "tune__trains": ["projector"],
    "tune__learning_rate": {"projector": 1e-2, "language": None},
    "model__architecture__language__layers": 1,
}
MODES = pytest.mark.parametrize("asynchronous", [False, True], ids=["waiting", "beside_training"])

# Whatever a save makes, writes, flushes, renames or removes goes through one of these.
_CALLS = (
    (os, "rename"),
    (os, "replace"),
    (os, "fsync"),
    (shutil, "rmtree"),
    (Path, "mkdir"),
    (Path, "write_text"),
    (Path, "write_bytes"),
    (torch, "save"),
    (checkpoint_state, "entries_of"),
    (checkpoint_state, "save_config"),
    (checkpoint_directory, "entries_of"),
)


def _recipe(root: Path, output: Path, asynchronous: bool, keep_last: int = 2, **changes: Any) -> Recipe:
    checkpoint = {"every_steps": 1, "keep_last": keep_last, "asynchronous": asynchronous}
    return tiny_recipe(root, output_dir=str(output), checkpoint=checkpoint, **SMALL, **changes)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("killed_saves")


@pytest.fixture(scope="module")
def whole(root: Path) -> Recipe:
    recipe = _recipe(root, root / "whole", asynchronous=False)
    run_ranks(1, train, recipe)
    return recipe


@pytest.fixture(scope="module")
def begun(root: Path) -> Path:
    """The run as a kill after tune-00000002 would have left it: the coming save is the first that removes one."""
    recipe = _recipe(root, root / "begun", asynchronous=False, keep_last=3)
    run_ranks(1, train, recipe)
    checkpoints = checkpoint_root(recipe)
    shutil.rmtree(checkpoints / "tune-00000003")
    write_latest(checkpoints / "tune-00000002")
    return recipe.output_dir


def _whole_checkpoints(recipe: Recipe) -> list[str]:
    found = checkpoint_root(recipe).glob("*-????????")
    return sorted(path.name for path in found if not problems_of(path))


def _train_killed(recipe: Recipe, at: int) -> int:
    """Train; before the `at`-th of the calls above, counted from the first save on, the process kills itself."""
    seen = {"saving": False, "calls": 0}
    lock = threading.Lock()

    def counted(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            with lock:
                if seen["saving"] and seen["calls"] == at:
                    os.kill(os.getpid(), signal.SIGKILL)
                seen["calls"] += seen["saving"]
            return original(*arguments, **named)

        return call

    original_begin = CheckpointSave.__init__

    def begin(self: CheckpointSave, *arguments: Any, **named: Any) -> None:
        seen["saving"] = True
        original_begin(self, *arguments, **named)

    patches = [mock.patch.object(owner, name, counted(getattr(owner, name))) for owner, name in _CALLS]
    for patch in [*patches, mock.patch.object(CheckpointSave, "__init__", begin)]:
        patch.start()
    train(recipe)
    return 0


def _killed_at(recipe: Recipe, at: int) -> bool:
    """Whether the run got so far; what it leaves never points at less than a whole checkpoint."""
    (ended,) = run_until_ended(1, _train_killed, recipe, at)
    if ended.code == 0:
        return False
    assert ended.code == -signal.SIGKILL, ended.output
    latest = checkpoint_root(recipe) / LATEST_FILE
    assert not latest.exists() or not problems_of(latest.parent / latest.read_text().strip())
    return True


def _all_resume_bitwise(recipes: list[Recipe], whole: Recipe, ranks: int = 1) -> None:
    for recipe in recipes:
        run_ranks(ranks, train, recipe)
        assert _metrics(recipe) == _metrics(whole), recipe.output_dir
        found, expected = set(_whole_checkpoints(recipe)), set(_whole_checkpoints(whole))
        # Killed when the last one was visible: the run has nothing to save any more, and the first one may be left.
        assert expected <= found <= expected | {"tune-00000001"}, recipe.output_dir
        assert {path.name for path in checkpoint_root(recipe).iterdir()} == {*found, LATEST_FILE}, recipe.output_dir


@pytest.mark.fault("SIGKILL at a point of a save: resumed from the newest whole checkpoint, losses bitwise the same")
@MODES
def test_run_killed_in_a_save_resumes_to_the_same_losses(root, tmp_path, whole, asynchronous, record_property):
    recipes = []
    for at in (1, 30):
        recipes.append(_recipe(root, tmp_path / str(at), asynchronous))
        assert _killed_at(recipes[-1], at)
    record_property("runs", len(recipes))
    _all_resume_bitwise(recipes, whole)


@pytest.mark.fault(
    "SIGKILL before each call of a save (mkdir, each tensor, fsync, rename, remove): the same", everything=True
)
@MODES
def test_run_killed_at_every_point_of_a_save_resumes(root, tmp_path, whole, begun, asynchronous, record_property):
    recipes = []
    for at in range(400):
        recipe = _recipe(root, tmp_path / str(at), asynchronous)
        shutil.copytree(begun, recipe.output_dir)
        if not _killed_at(recipe, at):
            break
        recipes.append(recipe)
    record_property("runs", len(recipes))
    assert 40 < len(recipes) < 400
    _all_resume_bitwise(recipes, whole)


def _train(recipe: Recipe) -> int:
    train(recipe)
    return 0


@pytest.mark.fault("SIGKILL of both ranks at 50 random times: the same", everything=True)
@MODES
def test_run_killed_at_random_times_resumes(root, tmp_path, asynchronous, record_property):
    layout = {"parallel": {"tensor": 2}}
    whole = _recipe(root, tmp_path / "whole", asynchronous, **layout)
    began = time.monotonic()
    run_ranks(2, train, whole)
    seconds = time.monotonic() - began
    recipes = []
    generator = torch.Generator().manual_seed(3 + asynchronous)
    for number, share in enumerate(torch.rand(25, generator=generator).tolist()):
        recipes.append(_recipe(root, tmp_path / str(number), asynchronous, **layout))
        run_until_ended(2, _train, recipes[-1], timeout=share * seconds)
    record_property("runs", len(recipes))
    _all_resume_bitwise(recipes, whole, ranks=2)
