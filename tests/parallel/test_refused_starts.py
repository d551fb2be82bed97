"""A start that is refused, for whatever reason, leaves the run's directory as it was, byte for byte."""

import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from megatron_sts.config import Recipe, checkpoint_root, entries_of, files_of, write_manifest
from megatron_sts.errors import MegatronStsError
from megatron_sts.parallel.groups import stop_groups
from megatron_sts.train.stages import train
from tests.parallel.test_resume import EVERY
from tests.ranks import run_ranks
from tests.tiny import tiny_data, tiny_recipe

Content = dict[str, str]
Change = Callable[[Path], dict[str, Any]]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("refused_starts")


def _recipe(root: Path, output: Path, **changes: Any) -> Recipe:
    return tiny_recipe(root, output_dir=str(output), **{**EVERY, "logging": {"tensorboard": True}, **changes})


@pytest.fixture(scope="module")
def killed(root: Path) -> Path:
    """The directory of a run that was killed in the midst of tune: TensorBoard's files, half a checkpoint."""
    recipe = _recipe(root, root / "killed")
    run_ranks(1, train, recipe)
    checkpoints = checkpoint_root(recipe)
    (checkpoints / "tune-00000004").rename(checkpoints / "tune-00000004.partial")
    return recipe.output_dir


def _content(directory: Path) -> Content:
    """A hash for each file of a directory, and its directories."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in directory.rglob("*")
    }


def _starts(recipes: list[Recipe]) -> list[tuple[str, Content]]:
    """What each start is told, and what the run's directory holds after it; one after another on a rank."""
    found = []
    with mock.patch.dict(sys.modules, {"wandb": None}):
        for recipe in recipes:
            try:
                train(recipe)
                told = "not refused"
            except MegatronStsError as error:
                told = str(error)
            stop_groups()
            found.append((told, _content(recipe.output_dir)))
    return found


def _with_a_long_record(root: Path) -> dict[str, Any]:
    records = json.loads((root / "train.json").read_text())
    records[3]["conversations"][1]["value"] = "red " * 500
    (root / "long.json").write_text(json.dumps(records))
    return {"tune__data": {"train": str(root / "long.json")}}


def _with_data_cut_off(root: Path) -> dict[str, Any]:
    (root / "cut.json").write_bytes((root / "train.json").read_bytes()[:-40])
    return {"tune__data": {"train": str(root / "cut.json")}}


def _with_more_records(root: Path) -> dict[str, Any]:
    return {"tune__data": {"train": str(tiny_data(root / "more", records=30)), "images": str(root / "more" / "images")}}


OTHER_RECIPES: dict[str, tuple[Change, str]] = {
    "seed": (lambda root: {"seed": 6}, "seed: 5 in the checkpoint"),
    "length": (lambda root: {"tune__steps": 9}, "--accept stages.tune.steps"),
    "a stage that is over": (lambda root: {"align__steps": 9}, "Stage align is over"),
    "names of stages": (lambda root: {"align__name": "one", "tune__name": "two"}, "holds another run"),
    "layout": (lambda root: {"parallel": {"tensor": 2}}, "the world has 1 ranks"),
    "groups": (lambda root: {"tune__skip": {"alpha": 0.9, "skip_groups": (1, 3)}}, "every group skip 1.8 layers"),
    "figures": (lambda root: {"logging": {"wandb_project": "p"}}, "pip install wandb"),
    "number of samples": (_with_more_records, "begun with 24"),
    "a record that is too long": (_with_a_long_record, "found 23 samples to train on"),
    "data that is cut off": (_with_data_cut_off, "cut.json"),
}
# What becomes of the newest checkpoint, and what the message says.
HARM: dict[str, tuple[Callable[[Path], None], str]] = {
    "cut": (lambda newest: _rewrite(newest / "__0_0.distcp", lambda content: content[:-2]), "is damaged"),
    "unreadable": (lambda newest: _rewrite(newest / "run.json", lambda content: b"{"), "is damaged"),
    "of another model": (lambda newest: _with_weights_of_align(newest), "does not fit the recipe's model"),
}


def _rewrite(file: Path, change: Callable[[bytes], bytes]) -> None:
    file.write_bytes(change(file.read_bytes()))


def _with_weights_of_align(newest: Path) -> None:
    """Whole by its manifest: only loading finds that the optimiser's state is that of another stage."""
    other = newest.with_name("align-00000003")
    for name in files_of(other):
        if name != "run.json":
            shutil.copy(other / name, newest / name)
    write_manifest(newest, entries_of(newest, files_of(newest)))


def _without_index(content: Content) -> Content:
    return {name: digest for name, digest in content.items() if Path(name).parts[0] != "index"}


def test_nothing_is_touched_by_a_start_that_is_refused(root, killed, tmp_path):
    recipes = [_recipe(root, killed, **change(root)) for change, _ in OTHER_RECIPES.values()]
    for name, (harm, _) in HARM.items():
        output = Path(shutil.copytree(killed, tmp_path / name))
        harm(output / "checkpoints" / "tune-00000002")
        recipes.append(_recipe(root, output))
    before = [_content(recipe.output_dir) for recipe in recipes]
    assert any("tune-00000004.partial" in name for name in before[0]), "what an accepted start clears away"
    messages = {name: message for name, (_, message) in (OTHER_RECIPES | HARM).items()}

    (found,) = run_ranks(1, _starts, recipes)
    for (name, message), earlier, (told, later) in zip(messages.items(), before, found, strict=True):
        assert message in told, name
        assert _without_index(later) == _without_index(earlier), name
        # What was measured of other data stands beside the run's own index, so that it is not measured again.
        assert earlier.items() <= later.items(), name


def test_no_directory_is_made_by_a_first_start_that_is_refused(root, killed, tmp_path):
    init = Path(shutil.copytree(killed / "checkpoints" / "align-00000003", tmp_path / "init"))
    _rewrite(init / "__0_0.distcp", lambda content: content[:-2])
    (tmp_path / "file").touch()
    recipes = {
        "is damaged": _recipe(root, tmp_path / "new", model__init=str(init)),
        "is not a directory": _recipe(root, tmp_path / "file" / "run"),
    }
    (found,) = run_ranks(1, _starts, list(recipes.values()))
    for message, (told, content) in zip(recipes, found, strict=True):
        assert message in told
        assert _without_index(content) == {}
