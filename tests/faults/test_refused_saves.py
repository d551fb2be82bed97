"""Disks that are full or read-only while a run saves: named with the bytes that are needed; earlier checkpoints stay.

On a small tmpfs, which only root may mount; root is also whom file modes do not stop, so that read-only is a mount.
"""

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch.distributed as dist

from megatron_sts.config import Recipe, checkpoint_root, problems_of
from megatron_sts.train.checkpoint_directory import CheckpointDirectory
from megatron_sts.train.checkpoint_state import StatePart
from megatron_sts.train.saver import Saver
from megatron_sts.train.stages import train
from tests.faults.disturbed import train_disturbed
from tests.parallel.test_resume import _metrics
from tests.ranks import run_ranks, run_until_ended
from tests.tiny import tiny_recipe

SHORT = {"align__steps": 1, "tune__steps": 4}
DISK_BYTES = 12 * 2**20


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("refused_saves")


def _recipe(root: Path, output: Path, **changes: Any) -> Recipe:
    checkpoint = {"every_steps": 1, "keep_last": 2}
    return tiny_recipe(root, output_dir=str(output), checkpoint=checkpoint, **SHORT, **changes)


@pytest.fixture(scope="module")
def whole(root: Path) -> Recipe:
    recipe = _recipe(root, root / "whole")
    run_ranks(2, train, recipe)
    return recipe


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """The directory of a run's checkpoints, as a disk of its own."""
    path = tmp_path / "run" / "checkpoints"
    path.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def _fill(disk: Path) -> None:
    with (disk / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
        while True:
            filler.write(bytes(4096))


def _remount(disk: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(disk)], check=True)


HARM: dict[str, Callable[[Path], None]] = {
    "full": _fill,
    "fills": _fill,
    "read_only": lambda disk: _remount(disk, "ro"),
}
MEND: dict[str, Callable[[Path], None]] = {
    "full": lambda disk: (disk / "filler").unlink(),
    "fills": lambda disk: (disk / "filler").unlink(),
    "read_only": lambda disk: _remount(disk, "rw"),
}
SAID = {
    "full": "the disk has 0 bytes left",
    "fills": "No space left on device",
    "read_only": "Read-only file system",
}


def _train_in_trouble(recipe: Recipe, disk: Path, trouble: str) -> int:
    """Train; the disk is in trouble when, or while, the second step of tune is saved, and well again at the third."""
    if dist.get_rank() == 0:
        owner, name = (StatePart, "write") if trouble == "fills" else (CheckpointDirectory, "make")
        original_harmed, original_save = getattr(owner, name), Saver.save
        done: list[str] = []

        def harmed(self: Any, *arguments: Any) -> Any:
            if done == ["tune 2"]:
                HARM[trouble](disk)
            return original_harmed(self, *arguments)

        def save(self: Saver, step: int, *arguments: Any) -> None:
            done[:] = [f"{self._stage} {step}"]
            original_save(self, step, *arguments)
            if done == ["tune 2"]:
                # Whatever training does meanwhile: the trouble is met before the third step is saved.
                while self._unfinished and self._unfinished[0].is_at_work:
                    os.sched_yield()
                MEND[trouble](disk)

        mock.patch.object(owner, name, harmed).start()
        mock.patch.object(Saver, "save", save).start()
    return train_disturbed(recipe, 0, "save", -1, lambda: None)


def _whole_checkpoints(disk: Path) -> list[str]:
    assert not list(disk.glob("*.partial"))
    return sorted(path.name for path in disk.glob("*-????????") if not problems_of(path))


def _check_words(output: str, disk: Path, trouble: str) -> None:
    refused = disk / "tune-00000002"
    assert f"{refused}: the checkpoint cannot be written" in output
    assert SAID[trouble] in output
    assert f" bytes in {disk}" in output


@pytest.mark.fault("disk full, disk that fills while it is written, read-only directory; continue: named, trained on")
@pytest.mark.parametrize("trouble", HARM)
def test_training_goes_on_without_a_checkpoint_where_that_is_wished_for(root, whole, disk, trouble):
    recipe = _recipe(root, disk.parent, on_save_error="continue")
    assert checkpoint_root(recipe) == disk
    ended = run_until_ended(2, _train_in_trouble, recipe, disk, trouble)
    assert [one.code for one in ended] == [0, 0], ended[0].output
    _check_words(ended[0].output, disk, trouble)
    assert ended[0].output.count("NO checkpoint, 1 so far could not be written") == 1
    assert _metrics(recipe) == _metrics(whole)
    assert _whole_checkpoints(disk) == ["align-00000001", "tune-00000003", "tune-00000004"]


def _stops_and_goes_on(root: Path, whole: Recipe, disk: Path, trouble: str) -> None:
    recipe = _recipe(root, disk.parent)
    ended = run_until_ended(2, _train_in_trouble, recipe, disk, trouble)
    assert [one.code for one in ended] == [2, 2], ended[0].output
    _check_words(ended[0].output, disk, trouble)
    if trouble != "fills":
        MEND[trouble](disk)
    assert _whole_checkpoints(disk) == ["align-00000001", "tune-00000001"]
    run_ranks(2, train, recipe)
    assert _metrics(recipe) == _metrics(whole)


@pytest.mark.fault("the same; stop: named, all ranks end, earlier checkpoints whole, resumed to the same losses")
def test_run_stops_at_a_full_disk_and_earlier_checkpoints_are_whole(root, whole, disk):
    _stops_and_goes_on(root, whole, disk, "fills")


@pytest.mark.fault(
    "the same; stop: named, all ranks end, earlier checkpoints whole, resumed to the same losses", everything=True
)
@pytest.mark.parametrize("trouble", ["full", "read_only"])
def test_run_stops_at_a_disk_that_is_refused_at_once(root, whole, disk, trouble):
    _stops_and_goes_on(root, whole, disk, trouble)
