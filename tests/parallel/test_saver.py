"""Checkpoints that are saved beside training hold the bytes of their step, become visible only when every rank has
written, in order and a bounded number at a time; and an error of one rank is met by all, at the same place.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing import ShardedTensor

from megatron_sts.config import LATEST_FILE, Recipe, checkpoint_root, problems_of
from megatron_sts.errors import CheckpointError, TrainingError
from megatron_sts.parallel.device import prepare_device
from megatron_sts.train.checkpoint_directory import CheckpointDirectory
from megatron_sts.train.checkpoint_save import CheckpointSave
from megatron_sts.train.checkpoint_state import StatePart
from megatron_sts.train.saver import Saver
from tests.ranks import run_ranks
from tests.tiny import tiny_recipe


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("saver")


def _recipe(root: Path, output: Path, **changes: Any) -> Recipe:
    return tiny_recipe(root, output_dir=str(output), **changes)


def _visible(recipe: Recipe) -> list[str]:
    return sorted(path.name for path in checkpoint_root(recipe).glob("*") if path.is_dir())


@dataclass
class _Training:
    """What a rank trains: a row of a matrix and a rate, which every step changes."""

    row: torch.Tensor
    rate: float = 0.0

    def step(self, number: int) -> None:
        self.row.fill_(float(number))
        self.rate = number / 10

    def state(self) -> dict[str, Any]:
        rank = dist.get_rank()
        sharded = ShardedTensor.from_rank_offsets("matrix", self.row, (0, rank, dist.get_world_size()))
        return {"matrix": sharded, "rate": self.rate}


@contextlib.contextmanager
def _writing_waits_for(event: threading.Event) -> Iterator[None]:
    original = StatePart.write

    def write(part: StatePart) -> Any:
        assert event.wait(20.0)
        return original(part)

    with mock.patch.object(StatePart, "write", write):
        yield


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20.0
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _load(path: Path, training: _Training) -> tuple[float, float]:
    training.step(99)
    loaded = dist_checkpointing.load(training.state(), str(path))
    return float(loaded["matrix"].max()), float(loaded["rate"])


def _save_and_change_at_once(recipe: Recipe) -> tuple[float, float]:
    prepare_device()
    training, event = _Training(torch.zeros(1, 4)), threading.Event()
    training.step(1)
    with _writing_waits_for(event):
        save = CheckpointSave(recipe, "tune", 1, training.state(), copies=True)
        training.step(2)
        event.set()
        path = save.finish()
    return _load(path, training)


def test_a_checkpoint_holds_the_step_that_it_was_asked_at(root, tmp_path):
    recipe = _recipe(root, tmp_path / "run")
    assert run_ranks(2, _save_and_change_at_once, recipe) == [(1.0, 0.1), (1.0, 0.1)]
    path = checkpoint_root(recipe) / "tune-00000001"
    assert problems_of(path) == []
    assert (path.parent / LATEST_FILE).read_text() == "tune-00000001\n"


def _one_rank_is_slow(recipe: Recipe) -> list[Any]:
    prepare_device()
    training, slow = _Training(torch.ones(1, 4)), threading.Event()
    if dist.get_rank() == 0:
        slow.set()
    with _writing_waits_for(slow):
        save = CheckpointSave(recipe, "tune", 1, training.state(), copies=True)
        if dist.get_rank() == 0:
            _until(lambda: not save.is_at_work)
        dist.barrier()
        seen: list[Any] = [save.is_at_work, _visible(recipe)]
        dist.barrier()
        slow.set()
        seen += [save.advance(), save.advance(), _visible(recipe)]
    return seen


def test_it_is_visible_only_when_every_rank_has_written(root, tmp_path):
    first, second = run_ranks(2, _one_rank_is_slow, _recipe(root, tmp_path / "run"))
    assert first == [False, ["tune-00000001.partial"], False, True, ["tune-00000001"]]
    assert second == [True, ["tune-00000001.partial"], False, True, ["tune-00000001"]]


def _fill_the_queue(recipe: Recipe) -> list[Any]:
    prepare_device()
    training, event, said = _Training(torch.ones(1, 4)), threading.Event(), []
    with _writing_waits_for(event), Saver(recipe, "tune", training.state, said.append) as saver:
        for step in (1, 2):
            training.step(step)
            saver.save(step, is_needed=False)
        in_queue = _visible(recipe)
        threading.Timer(0.3, event.set).start()
        stalled = saver.take_stall()
        training.step(3)
        saver.save(3, is_needed=False)
        waited = saver.take_stall()
        after = _visible(recipe)
        # What a loop does after each step: once no rank is at work it goes on with the oldest.
        while f"{said}".count("visible") < 2:
            _until(lambda: not saver.is_at_work())
            saver.advance()
        training.step(4)
        saver.save(4, is_needed=True)
    return [in_queue, stalled < 0.25, waited > 0.15, after, said, saver.take_stall() > 0.0]


def test_a_full_queue_waits_for_the_oldest_and_what_is_needed_for_all(root, tmp_path):
    keep = {"max_unfinished": 2, "keep_last": 9}
    recipe = _recipe(root, tmp_path / "run", checkpoint=keep)
    ((in_queue, quick, waited, after, said, stalled),) = run_ranks(1, _fill_the_queue, recipe)
    assert in_queue == ["tune-00000001.partial", "tune-00000002.partial"]
    assert quick and waited and stalled
    assert after == ["tune-00000001", "tune-00000002.partial", "tune-00000003.partial"]
    assert [line.split(" | ")[0] for line in said] == ["tune 1", "tune 2", "tune 3", "tune 4"]
    assert all("visible after" in line and "save_stall_s" in line for line in said)
    assert _visible(recipe) == [f"tune-0000000{step}" for step in (1, 2, 3, 4)]


@contextlib.contextmanager
def _fails_once(owner: Any, name: str, rank: int, error: Exception) -> Iterator[None]:
    original, left = getattr(owner, name), [error] if dist.get_rank() == rank else []

    def call(*arguments: Any) -> Any:
        if left:
            raise left.pop()
        return original(*arguments)

    with mock.patch.object(owner, name, call):
        yield


FULL = OSError(28, "No space left on device", "/the/file")
ONE_RANK_CANNOT: dict[str, tuple[Any, str, int, Exception]] = {
    "make": (CheckpointDirectory, "make", 0, CheckpointError("/the/file: No space left on device")),
    "copy": (StatePart, "copy", 1, RuntimeError("out of memory")),
    "write": (StatePart, "write", 1, FULL),
    "show": (CheckpointDirectory, "show", 0, FULL),
}


def _save_three(recipe: Recipe, case: str, is_needed: bool) -> tuple[str, list[str], list[str]]:
    """Three saves, the second of which fails on one rank: the error that ends it, what was said, what is there."""
    training, said, problem = _Training(torch.ones(1, 4)), [], ""
    try:
        with Saver(recipe, "tune", training.state, said.append) as saver:
            saver.save(1, is_needed=False)
            saver.advance()
            saver.advance()
            with _fails_once(*ONE_RANK_CANNOT[case]):
                saver.save(2, is_needed)
                saver.advance()
                saver.advance()
            saver.save(3, is_needed=True)
    except CheckpointError as failure:
        problem = str(failure)
    return problem, said, _visible(recipe)


def _save_in_each_case(recipe: Recipe, is_needed: bool) -> dict[str, Any]:
    prepare_device()
    cases = {}
    for case in ONE_RANK_CANNOT:
        if not (is_needed and case == "copy"):
            elsewhere = recipe.model_copy(update={"output_dir": recipe.output_dir / case})
            cases[case] = _save_three(elsewhere, case, is_needed)
    return cases


@pytest.mark.parametrize(("on_save_error", "is_needed"), [("stop", False), ("continue", False), ("continue", True)])
def test_an_error_of_one_rank_is_met_by_all(root, tmp_path, on_save_error, is_needed):
    recipe = _recipe(root, tmp_path / "run", on_save_error=on_save_error, checkpoint={"keep_last": 9})
    first, second = run_ranks(2, _save_in_each_case, recipe, is_needed)
    assert [case[0] for case in first.values()] == [case[0] for case in second.values()]
    for case, (problem, said, there) in first.items():
        _, _, rank, error = ONE_RANK_CANNOT[case]
        reason = f"rank {rank}: {type(error).__name__}: {error}" if case != "make" else str(error)
        if on_save_error == "continue" and not is_needed:
            assert problem == ""
            problem = said[1]
            assert problem.startswith("tune 2 | NO checkpoint, 1 so far could not be written: "), case
            assert there == ["tune-00000001", "tune-00000003"]
        else:
            assert there == ["tune-00000001"]
        assert reason in problem, case
        assert "tune-00000002: the checkpoint cannot be written" in problem
        assert f" bytes in {recipe.output_dir / case / 'checkpoints'}; the earlier checkpoints are as they" in problem


def _ends_by_an_error(recipe: Recipe) -> tuple[list[str], list[str]]:
    prepare_device()
    training, said = _Training(torch.ones(1, 4)), []
    with contextlib.suppress(TrainingError), Saver(recipe, "tune", training.state, said.append) as saver:
        saver.save(1, is_needed=False)
        raise TrainingError("too many bad steps")
    return said, _visible(recipe)


def test_what_is_unfinished_is_finished_when_training_ends_by_an_error(root, tmp_path):
    for said, there in run_ranks(2, _ends_by_an_error, _recipe(root, tmp_path / "run")):
        assert said[0].startswith("tune 1 | checkpoint")
        assert there == ["tune-00000001"]


def _save_after_harm(recipes: list[Recipe]) -> list[list[str]]:
    prepare_device()
    training, found = _Training(torch.ones(1, 4)), []
    for recipe, (before, harmed, step, _) in zip(recipes, KEPT, strict=True):
        with Saver(recipe, "tune", training.state, lambda text: None) as saver:
            for earlier in before:
                saver.save(earlier, is_needed=True)
            file = next((checkpoint_root(recipe) / f"tune-0000000{harmed}").glob("*.distcp"))
            if harmed > step:
                # Seen by its hash alone, when the run went back.
                file.write_bytes(bytes(file.stat().st_size))
            else:
                file.unlink()
            saver.save(step, is_needed=True)
        found.append(_visible(recipe))
    return found


# Steps saved with keep_last 2, the one that is harmed, the step saved after that, and what is there then.
KEPT = (([1, 2], 2, 3, [1, 2, 3]), ([1, 2, 4], 4, 3, [2, 3, 4]), ([4, 5], 5, 3, [3, 4, 5]))


def test_a_damaged_checkpoint_or_one_of_a_left_course_takes_no_place_of_those_that_are_kept(root, tmp_path):
    recipes = [_recipe(root, tmp_path / str(n), checkpoint={"keep_last": 2}) for n in range(len(KEPT))]
    (found,) = run_ranks(1, _save_after_harm, recipes)
    assert found == [[f"tune-0000000{step}" for step in there] for *_, there in KEPT]


def _warnings_of_a_part(directory: Path) -> list[str]:
    prepare_device()
    found: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = found.append  # type: ignore[method-assign]
    logging.getLogger("megatron").addHandler(handler)
    training = _Training(torch.zeros(4))
    for shared in ({"seed": 5}, {"seed": dist.get_rank()}):
        StatePart(training.state() | shared, directory)
    return [record.getMessage() for record in found]


def test_ranks_are_warned_of_what_differs(tmp_path):
    first, second = run_ranks(2, _warnings_of_a_part, tmp_path)
    assert first == []
    (warning,) = second
    assert "seed" in warning
