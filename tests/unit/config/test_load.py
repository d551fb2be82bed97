"""Shows how a recipe is read: paths, architecture, interpolation; what is wrong is a ConfigError."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_sts.config import Recipe, load_architecture, load_recipe
from megatron_sts.errors import ConfigError

Write = Callable[..., Path]


def error_of(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_recipe(path, overrides, check_files=False)
    return str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, write: Write) -> None:
    assert f"recipe '{tmp_path / 'no.yaml'}' does not exist" in error_of(tmp_path / "no.yaml")
    assert f"recipe '{tmp_path}' is a directory" in error_of(tmp_path)
    assert "list.yaml' is not a mapping" in error_of(write("[1, 2]", "list.yaml"))
    assert "open.yaml' is not readable as YAML" in error_of(write("a: [1", "open.yaml"))
    assert "tag.yaml' is not readable as YAML" in error_of(write("a: !!timestamp x", "tag.yaml"))


def test_an_unknown_key_gets_the_nearest_one_and_all_valid_ones(write: Write, recipe_values: dict[str, Any]) -> None:
    recipe_values["stages"][1]["skip"] = {"alhpa": 0.5}
    path = write(recipe_values)
    message = error_of(path)
    assert f"unknown key 'stages.tune.skip.alhpa' in {path}; did you mean 'alpha'?" in message
    assert "valid keys here: tokens, alpha, by, epsilon, rises, protect_above, measure_every, progress" in message
    assert f"'stages.tune.skip.alpha' is missing in {path}; add it: Mean skip probability" in message


def test_unknown_keys_are_found_at_every_depth(write: Write, recipe_values: dict[str, Any]) -> None:
    recipe_values["sede"] = 1
    recipe_values["model"]["architecture"]["vision"]["heads"] = 3
    recipe_values["stages"][0]["batch"]["global_size"] = 8
    recipe_values["stages"][0]["learning_rate_schedule"] = {5: 1}
    message = error_of(write(recipe_values))
    assert "unknown key 'sede'" in message and "did you mean 'seed'?" in message
    assert "unknown key 'model.architecture.vision.heads'" in message
    assert "unknown key 'stages.align.batch.global_size'" in message and "did you mean 'global'?" in message
    assert "unknown key 'stages.align.learning_rate_schedule" in message


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("parallel.tensor=true", "is true; it should be a whole number"),
        ("parallel.tensor='2'", 'is "2"; it should be a whole number'),
        ("parallel.tensor=0", "is 0; it should be greater than or equal to 1"),
        ("seed=1.5", "is 1.5; it should be a whole number"),
        ("output_dir=3", "is 3; it should be text"),
        ("precision=fp64", "is \"fp64\"; it should be 'fp32', 'bf16' or 'fp8'"),
        ("optimizer.beta1=1", "is 1; it should be less than 1"),
        ("optimizer.epsilon=.nan", "is NaN; it should be a finite number"),
        ("parallel.sequence_parallel=1", "is 1; it should be true or false"),
        ("model=3", "is 3; it should be a block of keys"),
        (
            "stages.align.trains=[projctor]",
            "is \"projctor\"; it should be 'projector', 'language' or 'vision'",
        ),
        ("stages.align.trains=projector", 'is "projector"; it should be a list'),
        ("stages.align.name=Align", 'is "Align"; it should be made of [a-z0-9_-]+'),
        ("stages.align.compress.keep_ratio=0", "is 0; it should be greater than 0"),
        ("stages.align.compress.keep_ratio=1.1", "is 1.1; it should be less than or equal to 1"),
        ("stages.align.compress.keep_tokens=0", "is 0; it should be greater than or equal to 1"),
        ("stages.tune.skip.selection=even", "is \"even\"; it should be 'independent' or 'balanced'"),
        ("stages.align.batch=null", "is null; it should be a block of keys"),
        ("stages.align.learning_rate.projector=0", "is 0; it should be greater than 0"),
    ],
)
def test_a_wrong_type_or_range_names_field_value_and_what_is_allowed(
    override: str, part: str, refused: Callable[..., str]
) -> None:
    message = refused(override)
    assert part in message
    assert f"in override '{override}'" in message or "stages.align.name" in override
    assert override.split("=")[0] in message or "stages.Align.name" in message
    assert message.count("\n  - ") == 1


def test_all_wrong_keys_and_types_come_in_one_error(refused: Callable[..., str]) -> None:
    message = refused("seed=x", "sede=1", "stages.align.batch.micro=0", "logging.tensorboard=2")
    assert message.count("\n  - ") == 4


def test_a_long_wrong_value_is_shortened(write: Write, recipe_values: dict[str, Any]) -> None:
    recipe_values["parallel"] = [1] * 500
    message = error_of(write(recipe_values))
    assert "is [1, 1, 1" in message and "…; it should be a block of keys" in message
    assert len(message) < 400


def test_paths_stay_relative_to_the_current_directory(load: Callable[..., Recipe]) -> None:
    recipe = load()
    assert recipe.output_dir == Path("runs/small")
    assert recipe.stage("tune").data.images == Path("data/images")


def test_an_architecture_file_is_looked_up_beside_the_recipe_then_here(
    write: Write, recipe_values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = recipe_values["model"]["architecture"]
    recipe_values["model"]["architecture"] = "sizes.yaml"
    path = write(recipe_values, "recipes/recipe.yaml")
    monkeypatch.chdir(tmp_path)

    message = error_of(path)
    assert "'model.architecture'" in message and "'sizes.yaml', but there is no such file" in message
    assert f"'{tmp_path / 'recipes/sizes.yaml'}' and 'sizes.yaml'" in message

    sizes["language"]["layers"] = 4
    write(sizes, "sizes.yaml")
    assert load_recipe(path, check_files=False).architecture.language.layers == 4
    sizes["language"]["layers"] = 6
    write(sizes, "recipes/sizes.yaml")
    assert load_recipe(path, check_files=False).architecture.language.layers == 6


def test_overrides_reach_into_an_architecture_file_and_its_errors_name_it(
    write: Write, recipe_values: dict[str, Any]
) -> None:
    sizes = recipe_values["model"]["architecture"]
    recipe_values["model"]["architecture"] = "sizes.yaml"
    path, sizes_path = write(recipe_values), write(sizes, "sizes.yaml")
    changed = load_recipe(path, ["model.architecture.language.layers=2"], check_files=False)
    assert changed.architecture.language.layers == 2
    del sizes["vision"]["layers"]
    write(sizes, "sizes.yaml")
    assert f"'model.architecture.vision.layers' is missing in {sizes_path}" in error_of(path)


def test_an_architecture_is_loaded_and_checked_by_itself(
    write: Write, recipe_values: dict[str, Any], tmp_path: Path
) -> None:
    sizes = recipe_values["model"]["architecture"]
    assert load_architecture(write(sizes, "sizes.yaml")).language.head_size == 16
    sizes["language"]["query_groups"] = 3
    sizes["vision"]["feature_layer"] = 9
    with pytest.raises(ConfigError) as caught:
        load_architecture(write(sizes, "sizes.yaml"))
    assert "language.attention_heads is 8, not divisible by language.query_groups 3" in str(caught.value)
    assert "vision.feature_layer is 9" in str(caught.value)
    with pytest.raises(ConfigError, match=r"architecture '.*none.yaml' does not exist"):
        load_architecture(tmp_path / "none.yaml")


def test_interpolation_is_filled_in_after_the_overrides(write: Write, recipe_values: dict[str, Any]) -> None:
    recipe_values["stages"][1]["data"]["images"] = "${stages[0].data.images}"
    recipe = load_recipe(write(recipe_values), ["stages.align.data.images=other"], check_files=False)
    assert recipe.stage("tune").data.images == Path("other")


def test_interpolation_that_leads_nowhere_and_mandatory_values_are_named(refused: Callable[..., str]) -> None:
    assert "'model.init' in" in refused("model.init=${nowhere}")
    assert "'output_dir' in" in refused("output_dir=???")


def test_numbers_may_be_written_without_a_decimal_point(load: Callable[..., Recipe]) -> None:
    assert load("stages.align.learning_rate.projector=1e-3").stage("align").learning_rate.projector == 1e-3


KEYS = st.sampled_from(
    [
        "seed",
        "precision",
        "parallel",
        "parallel.tensor",
        "parallel.pipeline",
        "parallel.layers_per_stage",
        "model",
        "model.architecture",
        "model.architecture.language",
        "model.architecture.language.layers",
        "model.architecture.vision.patch_size",
        "stages",
        "stages.tune",
        "stages.tune.skip",
        "stages.tune.skip.alpha",
        "stages.tune.epochs",
        "stages.tune.data.train",
        "stages.align.compress.keep_tokens",
        "stages.align.batch.global",
        "stages.nobody.steps",
        "unknown.key",
    ]
)
ODD_VALUES = [
    *("null", "true", "[]", "{}", "[1, 2]", "{a: 1}", "???", "${seed}", "${", "=", "1e999", "x" * 5000),
    *("!!int x", "!!binary a", "!!timestamp x", "2001-01-01", "{[1]: 2}", "[[1], {2: 3}]"),
    *("{name: tune}", "[{name: tune}]"),
]
VALUES = st.one_of(st.text(max_size=12), st.integers().map(str), st.floats().map(str), st.sampled_from(ODD_VALUES))
OVERRIDES = st.lists(st.one_of(st.text(max_size=20), st.tuples(KEYS, VALUES).map("=".join)), min_size=1, max_size=3)


@settings(
    derandomize=True,
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(overrides=OVERRIDES)
def test_any_override_gives_a_recipe_or_a_config_error(overrides: list[str], load: Callable[..., Recipe]) -> None:
    with contextlib.suppress(ConfigError):
        assert isinstance(load(*overrides, check_files=True), Recipe)
