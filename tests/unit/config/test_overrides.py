"""Shows what a dotted override does to the plain values of a recipe, and which ones are refused."""

from collections.abc import Callable
from typing import Any

import pytest

from megatron_sts.config import Recipe
from megatron_sts.config.overrides import apply_overrides, parse_override
from megatron_sts.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "keys", "value"),
    [
        ("seed=4", ("seed",), 4),
        ("a.b-c.d_1=1e-3", ("a", "b-c", "d_1"), 1e-3),
        ("a=null", ("a",), None),
        ("a=[1, x]", ("a",), [1, "x"]),
        ("a={b: true}", ("a",), {"b": True}),
        ("a=b=c", ("a",), "b=c"),
        ('a=""', ("a",), ""),
        ("a=${b}", ("a",), "${b}"),
    ],
)
def test_an_override_is_keys_and_a_yaml_value(text: str, keys: tuple[str, ...], value: object) -> None:
    override = parse_override(text)
    assert (override.keys, override.value) == (keys, value)


@pytest.mark.parametrize("text", ["", "seed", "=3", ".a=3", "a..b=3", "a b=3", "+a=3", "a[0]=3"])
def test_a_malformed_override_is_refused_with_the_right_form(text: str) -> None:
    with pytest.raises(ConfigError, match=r"malformed; write key\.sub=value"):
        parse_override(text)


def test_an_override_without_a_value_or_with_a_broken_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="override 'seed= ' has no value; write seed=null"):
        parse_override("seed= ")
    with pytest.raises(ConfigError, match=r"override 'seed=\[1' has a value that is not YAML: .*quote"):
        parse_override("seed=[1")


def test_overrides_set_fields_and_later_ones_win(load: Callable[..., Recipe]) -> None:
    recipe = load("parallel.pipeline=4", "stages.tune.skip.alpha=0.3", "stages.tune.skip.alpha=0")
    assert recipe.parallel.pipeline == 4
    (skip,) = recipe.stage("tune").skip
    assert (skip.alpha, skip.epsilon) == (0, 0.5)


def test_one_of_several_skips_is_named_by_its_tokens(load: Callable[..., Recipe]) -> None:
    skips = "stages.tune.skip=[{alpha: 0.1}, {tokens: visual, alpha: 0.5}]"
    recipe = load(skips, "stages.tune.skip.visual.alpha=0.75", "stages.tune.skip.all.never_skip=[0]")
    every, visual = recipe.stage("tune").skip
    assert (every.tokens, every.alpha, every.never_skip) == ("all", 0.1, (0,))
    assert (visual.tokens, visual.alpha, visual.never_skip) == ("visual", 0.75, ())
    with pytest.raises(ConfigError, match=r"'stages.tune.skip.visual.alpha' .* is true; it should be a number"):
        load(skips, "stages.tune.skip.visual.alpha=true")
    with pytest.raises(ConfigError, match=r"goes into 'stages.tune.skip'"):
        load(skips, "stages.tune.skip.alpha=0")


def test_a_block_is_removed_by_null_and_made_where_it_was_not(load: Callable[..., Recipe]) -> None:
    recipe = load("stages.align.compress=null", "stages.tune.skip=null", "stages.tune.compress.keep_tokens=9")
    assert recipe.stage("align").compress is None and not recipe.stage("tune").skip
    compress = recipe.stage("tune").compress
    assert compress is not None and compress.keep_tokens == 9


@pytest.mark.parametrize(
    ("overrides", "stage", "epochs", "steps"),
    [
        (["stages.align.steps=7"], "align", None, 7),
        (["stages.tune.epochs=2"], "tune", 2, None),
        (["stages.align.epochs=null", "stages.align.steps=10"], "align", None, 10),
        (["stages.align.steps=10", "stages.align.epochs=null"], "align", None, 10),
    ],
)
def test_a_length_by_override_takes_the_place_of_the_other_one(
    overrides: list[str], stage: str, epochs: float | None, steps: int | None, load: Callable[..., Recipe]
) -> None:
    found = load(*overrides).stage(stage)
    assert (found.epochs, found.steps) == (epochs, steps)


def test_kept_tokens_and_warm_up_steps_take_the_place_of_their_ratio(load: Callable[..., Recipe]) -> None:
    stage = load("stages.align.compress.keep_tokens=4").stage("align")
    assert stage.compress is not None
    assert (stage.compress.keep_ratio, stage.compress.keep_tokens) == (None, 4)
    values = {"warmup_steps": 5}
    assert apply_overrides(values, [parse_override("warmup_ratio=0.1")], "FILE") == {"warmup_ratio": 0.1}


def test_an_unknown_stage_gets_a_suggestion(refused: Callable[..., str]) -> None:
    message = refused("stages.tnue.steps=1")
    assert "override 'stages.tnue.steps=1' names stage 'tnue'" in message
    assert "did you mean 'tune'? its stages: align, tune" in message


def test_a_whole_stage_and_a_field_inside_a_value_are_refused(refused: Callable[..., str]) -> None:
    assert "override 'stages.tune=null' names a whole stage; name a field" in refused("stages.tune=null")
    message = refused("stages.tune.batch.micro.size=3")
    assert "goes into 'stages.tune.batch.micro', which" in message and "gives as 2" in message
    assert "override that field itself" in message


def test_the_values_given_are_left_as_they_were(recipe_values: dict[str, Any]) -> None:
    before = repr(recipe_values)
    apply_overrides(recipe_values, [parse_override("stages.tune.skip.alpha=0")], "FILE")
    assert repr(recipe_values) == before
