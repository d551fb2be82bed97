"""Shows that a resolved recipe reads back equal, and that differences are named by dotted field."""

from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_sts.config import Recipe, difference, load_recipe, resolved_yaml


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["parallel.pipeline=2", "parallel.layers_per_stage=[3,5]", "stages.tune.learning_rate.language=1e-5"],
        ["stages.align.compress={}", "stages.tune.skip=null", "checkpoint.every_steps=5"],
        ["stages.align.compress.keep_tokens=4", "stages.align.learning_rate_schedule.warmup_steps=3"],
        ["output_dir='1e-3'", "stages.align.data.system_prompt=''", "logging.wandb_project='null'"],
    ],
)
def test_a_resolved_recipe_reads_back_equal(
    overrides: list[str], load: Callable[..., Recipe], write: Callable[..., Path]
) -> None:
    recipe = load(*overrides)
    again = load_recipe(write(resolved_yaml(recipe), "resolved.yaml"), check_files=False)
    assert again == recipe
    assert resolved_yaml(again) == resolved_yaml(recipe)


@pytest.mark.parametrize("prompt", ["costs ${5}", r"back\slash \${seed}", r"a\\${b}", "line one\nline: two"])
def test_text_that_looks_like_an_interpolation_survives(
    prompt: str, load: Callable[..., Recipe], write: Callable[..., Path]
) -> None:
    recipe = load()
    data = recipe.stages[0].data.model_copy(update={"system_prompt": prompt})
    recipe = recipe.model_copy(update={"stages": (recipe.stages[0].model_copy(update={"data": data}),)})
    assert load_recipe(write(resolved_yaml(recipe), "resolved.yaml"), check_files=False) == recipe


def test_equal_recipes_do_not_differ(load: Callable[..., Recipe]) -> None:
    assert difference(load().resolved(), load().resolved()) == []


def test_differences_are_named_by_field_with_stages_by_name(load: Callable[..., Recipe]) -> None:
    changed = load("seed=1", "stages.tune.skip.alpha=0.1", "stages.align.compress=null", "stages.tune.steps=3")
    assert difference(load().resolved(), changed.resolved()) == [
        "seed",
        "stages.align.compress",
        "stages.tune.steps",
        "stages.tune.skip.alpha",
    ]


def test_a_list_differs_as_a_whole_and_a_lone_stage_is_named(load: Callable[..., Recipe]) -> None:
    old = load().resolved()
    new = load("parallel.layers_per_stage=[8]").resolved()
    new["stages"] = new["stages"][1:]
    assert difference(old, new) == ["parallel.layers_per_stage", "stages.align"]
    assert difference({"trains": ["a", "b"]}, {"trains": ["a"]}) == ["trains"]


def test_stages_in_another_order_differ(load: Callable[..., Recipe]) -> None:
    old, new = load().resolved(), load().resolved()
    new["stages"] = new["stages"][::-1]
    assert difference(old, new) == ["stages"]
