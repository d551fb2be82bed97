"""Shows the share of padding by hand, and that it is that of the steps that training takes."""

from pathlib import Path
from typing import Any

import pytest

from megatron_sts.data import SampleIndex
from megatron_sts.data.padding import describe_steps
from megatron_sts.train.stage_data import StageData
from tests.tiny import tiny_recipe


def index(*text_tokens: int) -> SampleIndex:
    return SampleIndex.from_rows((tokens, 0, tokens, 0) for tokens in text_tokens)


def test_shares_by_hand(tmp_path: Path) -> None:
    # One step of all four, padded to 6: 8 of 24 positions. Of two packed rows [6, 2] and [4, 4] none is padded.
    whole = tiny_recipe(tmp_path, tune__batch={"global": 4, "micro": 2})
    found = describe_steps(whole, whole.stage("tune"), index(6, 4, 4, 2), visual_tokens=4)["padding"]
    assert found == pytest.approx({"neither": 1 / 3, "group_by_length": 1 / 3, "packing": 0, "both": 0})
    # Steps of two: those of like length are put together.
    halves = tiny_recipe(tmp_path, tune__batch={"global": 2, "micro": 2})
    found = describe_steps(halves, halves.stage("tune"), index(6, 2, 6, 2), visual_tokens=4)["padding"]
    assert found["group_by_length"] == found["packing"] == found["both"] == 0


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("context", [1, 2])
def test_shares_and_steps_are_those_of_training(tmp_path: Path, packing: bool, grouped: bool, context: int) -> None:
    data: dict[str, Any] = {"packing": packing, "group_by_length": grouped}
    recipe = tiny_recipe(tmp_path, parallel={"context": context}, tune__data=data, tune__epochs=2, tune__steps=None)
    training = StageData(recipe, recipe.stage("tune"))
    # 24 samples are an epoch of three steps.
    shapes = [training.shape(training.planner.plan(step)) for step in range(3)]
    positions = sum(shape.rows * shape.length for shape in shapes)
    found = describe_steps(recipe, recipe.stage("tune"), training.index, recipe.architecture.visual_tokens)
    names = {(0, 0): "neither", (1, 0): "group_by_length", (0, 1): "packing", (1, 1): "both"}
    expected = 1 - sum(shape.tokens for shape in shapes) / positions
    assert found["padding"][names[grouped, packing]] == pytest.approx(expected)
    assert found["steps"] == training.total_steps == 6
    assert found["distinct_lengths"]["unrounded"] == len({shape.length for shape in shapes}) or packing


def test_rounding_leaves_fewer_lengths(tmp_path: Path) -> None:
    sizes = {"batch": {"global": 2, "micro": 2}, "data": {"group_by_length": True}}
    recipe = tiny_recipe(tmp_path, length_rounding=8, **{f"tune__{name}": value for name, value in sizes.items()})
    # Two steps, as long as 101 and 103.
    found = describe_steps(recipe, recipe.stage("tune"), index(103, 100, 101, 102), visual_tokens=4)
    assert found["distinct_lengths"] == {"rounded": 1, "unrounded": 2}
    # 104 positions a row: 416 in all, of which 406 are samples'.
    assert found["padding"]["group_by_length"] == pytest.approx(10 / 416)
    assert found["padding"]["packing"] < 10 / 416
