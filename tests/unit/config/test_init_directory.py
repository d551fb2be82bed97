"""Shows that a recipe takes what it leaves out from the checkpoint it starts from, and what it gives from itself."""

from pathlib import Path

import pytest

from megatron_sts.config import Recipe, write_architecture
from megatron_sts.config.init_directory import with_defaults_of_init


@pytest.fixture
def init(tmp_path: Path, recipe_values: dict) -> Path:
    """An imported checkpoint's directory with a tower and no tokenizer."""
    directory = tmp_path / "init"
    (directory / "vision").mkdir(parents=True)
    write_architecture(directory, Recipe.model_validate(recipe_values).architecture)
    return directory


def test_what_is_left_out_is_found_beside_the_weights(init: Path) -> None:
    values = with_defaults_of_init({"seed": 1, "model": {"init": str(init), "architecture": None}})
    assert values == {
        "seed": 1,
        "model": {"init": str(init), "architecture": str(init / "architecture.yaml"), "vision": str(init / "vision")},
    }


def test_what_a_recipe_gives_counts(init: Path) -> None:
    given = {"init": str(init), "architecture": "mine.yaml", "vision": "tower", "tokenizer": "words"}
    assert with_defaults_of_init({"model": given})["model"] == given


@pytest.mark.parametrize("model", [None, 3, {}, {"init": None}, {"init": "nowhere"}])
def test_without_such_a_checkpoint_nothing_changes(model: object) -> None:
    assert with_defaults_of_init({"model": model}) == {"model": model}


def test_the_architecture_is_read_back(load, init: Path, recipe_values: dict) -> None:
    recipe = load("model.architecture=null", f"model.init={init}")
    assert recipe.architecture == Recipe.model_validate(recipe_values).architecture
    assert recipe.model.vision == init / "vision"
