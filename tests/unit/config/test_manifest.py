"""Shows that a manifest finds any change to a checkpoint's files, that ranks can share the work, and what is kept."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from megatron_sts.config import (
    MANIFEST_FILE,
    Recipe,
    best_checkpoint,
    entries_of,
    files_of,
    list_checkpoints,
    outdated,
    problems_of,
    prune,
    read_manifest,
    write_manifest,
    write_run,
)
from megatron_sts.errors import CheckpointError
from tests.unit.config.conftest import RECIPE


def make(path: Path, files: dict[str, bytes]) -> Path:
    path.mkdir(parents=True)
    for name, content in files.items():
        (path / name).write_bytes(content)
    write_manifest(path, entries_of(path, files_of(path)))
    return path


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return make(tmp_path / "tune-00000004", {"a": b"weights", "b": b"moments", ".metadata": b"m", "run.json": b"{}"})


def test_manifest_has_size_and_hash_of_every_file(checkpoint):
    manifest = read_manifest(checkpoint)
    assert set(manifest) == {"a", "b", ".metadata", "run.json"}
    assert manifest["a"].bytes == 7
    assert manifest["a"].sha256 == hashlib.sha256(b"weights").hexdigest()
    assert problems_of(checkpoint) == []


@pytest.mark.parametrize(
    ("content", "problem"), [(b"weightz", "its bytes are not"), (b"weight", "has 6 bytes"), (None, "missing")]
)
def test_any_change_to_a_file_is_named(checkpoint, content, problem):
    (checkpoint / "a").unlink()
    if content is not None:
        (checkpoint / "a").write_bytes(content)
    (found,) = problems_of(checkpoint)
    assert found.startswith(str(checkpoint / "a")) and problem in found
    # Without reading files a change of bytes alone cannot be seen.
    assert bool(problems_of(checkpoint, hashes=False)) == (content != b"weightz")


def test_file_that_was_not_written_with_it_is_named_and_directories_are_the_users(checkpoint):
    (checkpoint / "tokenizer").mkdir()
    (checkpoint / "tokenizer" / "tokenizer.json").write_text("{}")
    assert problems_of(checkpoint) == []
    (checkpoint / "z").touch()
    assert problems_of(checkpoint) == [f"{checkpoint / 'z'}: was not written with it"]


def test_ranks_share_the_files_and_find_together_what_one_finds(checkpoint):
    for name in ("a", "b", "run.json"):
        (checkpoint / name).write_bytes(b"?")
    shares = [problem for share in range(3) for problem in problems_of(checkpoint, share, 3)]
    assert sorted(shares) == sorted(problems_of(checkpoint)) and len(shares) == 3


@pytest.mark.parametrize("damage", ["cut", "other entry", "other format", "gone"])
def test_damage_to_the_manifest_is_laid_to_the_manifest(checkpoint, damage):
    file = checkpoint / MANIFEST_FILE
    content = json.loads(file.read_text())
    if damage == "gone":
        file.unlink()
    elif damage == "cut":
        file.write_text(file.read_text()[:-2])
    else:
        content |= {"format": 9} if damage == "other format" else {"files": {**content["files"], "a": {"bytes": 1}}}
        file.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        read_manifest(checkpoint)
    (found,) = problems_of(checkpoint)
    assert str(file) in found


def test_last_checkpoints_and_multiples_are_kept():
    steps = [Path(f"tune-{step:08d}") for step in (100, 150, 200, 250, 300)]
    assert outdated(steps, 2, None) == steps[:3]
    assert outdated(steps, 2, 100) == [steps[1]]
    assert outdated(steps, 9, None) == []
    assert outdated(steps, 2, None, best=steps[1]) == [steps[0], steps[2]]


def test_pruning_leaves_the_newest_whole_and_the_damaged(tmp_path):
    root = tmp_path / "run" / "checkpoints"
    recipe = Recipe.model_validate(RECIPE)
    for step in (1, 2, 3):
        path = make(root / f"tune-{step:08d}", {"a": b"weights"})
        write_run(path, "tune", step, recipe)
        write_manifest(path, entries_of(path, files_of(path)))
    (root / "tune-00000003" / "a").write_bytes(b"weightz")
    listed = {item.path.name: bool(item.problems) for item in list_checkpoints(tmp_path / "run", hashes=True)}
    assert listed["tune-00000003"]
    assert prune(tmp_path / "run", 1, None, only_show=True) == [root / "tune-00000001"]
    assert (root / "tune-00000001").exists()
    prune(root, 1, None, only_show=False)
    assert sorted(path.name for path in root.iterdir()) == ["tune-00000002", "tune-00000003"]


def test_directory_without_checkpoints_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint in it"):
        list_checkpoints(tmp_path, hashes=False)


def test_the_best_of_the_last_stage_is_the_lowest_finite_loss_and_the_oldest_of_equals(tmp_path):
    root, recipe = tmp_path / "run" / "checkpoints", Recipe.model_validate(RECIPE)
    losses = {"align-00000009": 0.1, "tune-00000001": float("nan"), "tune-00000002": 0.5, "tune-00000003": 0.5}
    for name, loss in {**losses, "tune-00000004": None}.items():
        path = make(root / name, {"a": b"weights"})
        write_run(path, name[:-9], int(name[-8:]), recipe, loss)
        write_manifest(path, entries_of(path, files_of(path)))
    assert best_checkpoint(tmp_path / "run") == root / "tune-00000002"
    listed = list_checkpoints(root, hashes=False)
    assert {one.path.name for one in listed if one.is_best} == {"align-00000009", "tune-00000002"}
    # Without keep_best in the recipe nothing but the last is kept.
    assert len(prune(root, 1, None, only_show=True)) == 3
    with pytest.raises(CheckpointError, match=r"no checkpoint in it"):
        best_checkpoint(tmp_path)
    for name in losses:
        shutil.rmtree(root / name)
    with pytest.raises(CheckpointError, match=r"validation loss; train with keep_best: true"):
        best_checkpoint(root)
