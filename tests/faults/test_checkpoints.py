"""Checkpoints that were harmed after they were written: what is wrong is named, and nothing in them is run."""

import os
import pickle
import shutil
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata

from megatron_sts.config import (
    MANIFEST_FILE,
    Recipe,
    checkpoint_root,
    entries_of,
    files_of,
    problems_of,
    write_manifest,
)
from megatron_sts.train.stages import train
from tests.parallel.test_resume import _metrics
from tests.ranks import RankFailed, run_ranks, run_until_ended
from tests.tiny import tiny_recipe

SHORT = {"tune__steps": 2, "align__steps": 2}
EVERY = {"checkpoint": {"every_steps": 1, "keep_last": 2}}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def whole(root: Path) -> Recipe:
    recipe = tiny_recipe(root, output_dir=str(root / "whole"), **SHORT, **EVERY)
    run_ranks(1, train, recipe)
    return recipe


def _whole_checkpoints(recipe: Recipe) -> list[str]:
    found = checkpoint_root(recipe).glob("*-????????")
    return sorted(path.name for path in found if not problems_of(path))


def _elsewhere(recipe: Recipe, output: Path, **checkpoint_changes: Any) -> Recipe:
    """The recipe over a copy of its finished run."""
    shutil.copytree(recipe.output_dir, output)
    kept = recipe.checkpoint.model_copy(update=checkpoint_changes)
    return recipe.model_copy(update={"output_dir": output, "checkpoint": kept})


def _train(recipe: Recipe) -> int:
    train(recipe)
    return 0


# ---------------------------------------------------------------------------------------- harmed afterwards


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x40
    file.write_bytes(content)


def _cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 2)


@pytest.mark.fault("a byte flipped, two bytes cut off, the file deleted, in each file of a checkpoint: found and named")
def test_harm_to_any_file_is_found_and_the_older_checkpoint_used_only_if_allowed(whole, tmp_path, record_property):
    recipe = _elsewhere(whole, tmp_path / "run")
    newest = checkpoint_root(recipe) / "tune-00000002"
    names = [*files_of(newest), MANIFEST_FILE]
    assert len(names) == 6
    for name in names:
        for harm in (_flip, _cut, Path.unlink):
            content = (newest / name).read_bytes()
            harm(newest / name)
            found = problems_of(newest)
            assert len(found) == 1, (name, harm, found)
            assert name in found[0], (name, harm, found)
            (newest / name).write_bytes(content)
    record_property("runs", 3 * len(names))
    assert problems_of(newest) == []

    _flip(next(newest.glob("*.distcp")))
    with pytest.raises(RankFailed, match=r"\.distcp: its bytes are not.*allow_older: true.*tune-00000001"):
        run_ranks(1, train, recipe)
    (newest / "run.json").unlink()
    with pytest.raises(RankFailed, match=r"run\.json: missing.*checkpoint.allow_older: true"):
        run_ranks(1, train, recipe)


@pytest.mark.fault("the newest checkpoint harmed, going back allowed: passed over by name, losses bitwise the same")
def test_harmed_checkpoint_is_passed_over_where_that_is_allowed(whole, tmp_path):
    recipe = _elsewhere(whole, tmp_path / "run", allow_older=True)
    harmed = next((checkpoint_root(recipe) / "tune-00000002").glob("*.distcp"))
    _flip(harmed)
    ended = run_until_ended(2, _train, recipe)
    assert [one.code for one in ended] == [0, 0], ended[0].output
    assert f"passed over {harmed.parent}, which is damaged: {harmed}" in ended[0].output
    assert [line["step"] for line in _metrics(recipe)] == [line["step"] for line in _metrics(whole)]
    assert _whole_checkpoints(recipe) == _whole_checkpoints(whole)


# ---------------------------------------------------------------------------------------- pickles


class _Canary:
    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def _in_metadata(checkpoint_directory: Path, canary: _Canary) -> None:
    (checkpoint_directory / ".metadata").write_bytes(pickle.dumps(canary))


def _in_common(checkpoint_directory: Path, canary: _Canary) -> None:
    torch.save({"x": canary}, checkpoint_directory / "common.pt")


def _in_shard(checkpoint_directory: Path, canary: _Canary) -> None:
    stream = BytesIO()
    torch.save([canary], stream)
    _put_object(checkpoint_directory, stream.getvalue())


def _in_fp8_state(checkpoint_directory: Path, canary: _Canary) -> None:
    stream = BytesIO()
    torch.save(torch.frombuffer(bytearray(pickle.dumps(canary)), dtype=torch.uint8), stream)
    _put_object(checkpoint_directory, stream.getvalue())


def _put_object(checkpoint_directory: Path, content: bytes) -> None:
    """Replace the first stored object, at the end of its file."""
    metadata = pickle.loads((checkpoint_directory / ".metadata").read_bytes())
    objects = {k for k, entry in metadata.state_dict_metadata.items() if isinstance(entry, BytesStorageMetadata)}
    index = next(index for index in metadata.storage_data if index.fqn in objects)
    info = metadata.storage_data[index]
    file = checkpoint_directory / info.relative_path
    offset = file.stat().st_size
    file.write_bytes(file.read_bytes() + content)
    metadata.storage_data[index] = replace(info, offset=offset, length=len(content))
    (checkpoint_directory / ".metadata").write_bytes(pickle.dumps(metadata))


@pytest.mark.fault("pickled code in a checkpoint's metadata, common state, stored objects, FP8 state: never run")
@pytest.mark.parametrize("plant", [_in_metadata, _in_common, _in_shard, _in_fp8_state])
def test_code_in_a_checkpoint_is_not_run(whole, tmp_path, plant):
    recipe = _elsewhere(whole, tmp_path / "run")
    shutil.rmtree(checkpoint_root(recipe) / "tune-00000002")
    harmed = checkpoint_root(recipe) / "tune-00000001"
    canary = tmp_path / "canary"
    plant(harmed, _Canary(canary))
    # Whoever plants code writes a manifest that fits.
    write_manifest(harmed, entries_of(harmed, files_of(harmed)))
    with pytest.raises(RankFailed, match=r"tune-00000001/(\.metadata|common\.pt|__0_\d\.distcp): "):
        run_ranks(1, train, recipe)
    assert not canary.exists()
