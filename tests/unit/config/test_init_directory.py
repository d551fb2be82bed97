"""Shows that a recipe takes what it leaves out from the checkpoint it starts from, and what it gives from itself; and
what is said of a `model.init` that is no checkpoint.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_sts.config import Recipe, load_recipe, write_architecture, write_latest, write_run
from megatron_sts.config.init_directory import with_defaults_of_init
from megatron_sts.errors import CheckpointError, ConfigError


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


def _checkpoint(directory: Path, recipe_values: dict, name: str, **model: str) -> Path:
    """A training checkpoint's directory, without weights."""
    values = {**recipe_values, "model": {**recipe_values["model"], **model}}
    (directory / "checkpoints" / name).mkdir(parents=True)
    write_run(directory / "checkpoints" / name, name.partition("-")[0], 3, Recipe.model_validate(values))
    return directory / "checkpoints" / name


def test_a_training_checkpoint_says_what_it_was_trained_with(load, tmp_path: Path, recipe_values: dict) -> None:
    trained = _checkpoint(tmp_path / "run", recipe_values, "tune-00000370", vision="tower", tokenizer="words")
    recipe = load("model.architecture=null", f"model.init={trained}")
    assert recipe.architecture == Recipe.model_validate(recipe_values).architecture
    assert (recipe.model.vision, recipe.model.tokenizer) == (Path("tower"), Path("words"))
    assert load(f"model.init={trained}", "model.tokenizer=mine").model.tokenizer == Path("mine")


def test_a_training_checkpoint_that_cannot_be_read_is_named(load, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"run.json: cannot be read"):
        load("model.architecture=null", f"model.init={tmp_path}")


def _nothing(at: Path, values: dict) -> str:
    return (
        f"does not exist; give a finished checkpoint, or make one: {IMPORT} --vision VISION_DIR --language LANGUAGE_DIR"
    )


def _file(at: Path, values: dict) -> str:
    at.write_text("")
    return "is a file, not the directory of a checkpoint"


def _run(at: Path, values: dict) -> str:
    newest = _checkpoint(at, values, "align-00000050")
    older = _checkpoint(at, values, "tune-00000002")
    os.utime(older / "run.json", (1, 1))
    return f"it is a run's directory; give {newest}, the last one there"


def _run_with_latest(at: Path, values: dict) -> str:
    for name in ("align-00000050", "tune-00000002"):
        checkpoint = _checkpoint(at, values, name)
    os.utime(checkpoint / "run.json", (1, 1))
    write_latest(checkpoint)
    return f"it is a run's directory; give {checkpoint}, the last one there"


def _unfinished(at: Path, values: dict) -> str:
    at.with_name("x.partial").mkdir()
    return "the checkpoint was never finished"


def _hugging_face(**config: object) -> Callable[[Path, dict], None]:
    def make(at: Path, values: dict) -> None:
        at.mkdir()
        (at / "config.json").write_text(json.dumps(config))

    return make


def _megatron(at: Path, values: dict) -> str:
    at.mkdir()
    (at / "latest_checkpointed_iteration.txt").write_text("10")
    return f"{IMPORT} --vision VISION_DIR --megatron {at} "


def _empty(at: Path, values: dict) -> str:
    at.mkdir()
    return "no run.json, so this is not a training checkpoint; give a finished checkpoint, or make one"


def _language(at: Path, values: dict) -> str:
    _hugging_face(model_type="llama", vocab_size=10)(at, values)
    return f"a Hugging Face language model (llama); {MAKE} --vision VISION_DIR --language {at} "


def _tower(at: Path, values: dict) -> str:
    _hugging_face(model_type="clip", vision_config={}, text_config={})(at, values)
    return f"a Hugging Face vision encoder (clip); {MAKE} --vision {at} "


def _export(at: Path, values: dict) -> str:
    _hugging_face(model_type="llava", vision_config={}, text_config={})(at, values)
    return f"a Hugging Face LLaVA model, as an export is; {MAKE} --hf {at} "


IMPORT = "python tools/convert.py import"
MAKE = f"make a checkpoint of it, and give that one: {IMPORT}"


@pytest.mark.parametrize(
    "make", [_nothing, _file, _run, _run_with_latest, _unfinished, _language, _tower, _export, _megatron, _empty]
)
@pytest.mark.parametrize("has_architecture", [False, True])
def test_what_is_no_checkpoint_is_named_with_what_to_give_or_run(
    recipe_values: dict, tmp_path: Path, make: Callable[[Path, dict], str], has_architecture: bool
) -> None:
    at = tmp_path / ("x.partial" if make is _unfinished else "x")
    said = make(at, recipe_values)
    model = {"init": str(at)} | ({"architecture": recipe_values["model"]["architecture"]} if has_architecture else {})
    (tmp_path / "recipe.yaml").write_text(json.dumps({**recipe_values, "model": model}))
    with pytest.raises(ConfigError) as refused:
        load_recipe(tmp_path / "recipe.yaml")
    assert f"is '{at}': " in str(refused.value) and said in str(refused.value)
    assert "model.architecture" not in str(refused.value)


def test_a_relative_path_says_where_it_was_looked_for(load) -> None:
    with pytest.raises(
        ConfigError, match=rf"'model.init' in override .* is 'no/where': does not exist \(looked for in {Path.cwd()}\)"
    ):
        load("model.architecture=null", "model.init=no/where")
