"""A turn's weight multiplies the loss of its tokens, and the sum of the weights divides it: as worked out by hand from
the loss of each token, padded and packed, in every kind of layout."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_sts.config import Recipe
from megatron_sts.parallel.groups import start_groups
from megatron_sts.train.loop import prepare_stage
from megatron_sts.train.resume import Start
from megatron_sts.train.stage_data import StageData
from tests.parallel.observe import assert_same, observe_all, step_inputs
from tests.ranks import run_ranks
from tests.tiny import tiny_data, tiny_recipe, tiny_tokenizer

WEIGHTS: list[dict[str, Any]] = [{}, {"weight": 0.25}, {"loss_weight": 3}, {"loss": False}, {"weight": 0.1}]
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "dp2": (2, {}),
    "tp2_sp": (2, {"tensor": 2, "sequence_parallel": True}),
    "cp2": (2, {"context": 2}),
    "pp3": (3, {"pipeline": 3, "layers_per_stage": [1, 2, 1]}),
    "pp2_vp2": (2, {"pipeline": 2, "virtual_pipeline": 2}),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records of two questions, whose answers have weights, or their records have."""
    root = tmp_path_factory.mktemp("weights")
    path = tiny_data(root)
    records = json.loads(path.read_text())
    for number, record in enumerate(records):
        answer = record["conversations"][1]
        record["conversations"] += [{"from": "human", "value": "what is it"}, {"from": "gpt", "value": "dark"}]
        answer |= WEIGHTS[number % 5]
        if number % 4 == 0:
            record["weight"] = 1.5
        if number % 7 == 3:
            record["conversations"][3]["value"] = ""
    path.write_text(json.dumps(records))
    tiny_tokenizer(root / "tokenizer")
    return root


def _recipes(root: Path, **changes: Any) -> list[Recipe]:
    packed = {"tune__data": {"packing": True}}
    return [tiny_recipe(root, **changes), tiny_recipe(root, **(packed | changes))]


def _by_hand(recipe: Recipe) -> tuple[float, dict[str, np.ndarray], int, float]:
    """The first step's loss and gradients, from the loss of each token; supervised tokens, and what they weigh."""
    place = start_groups(recipe.parallel, recipe.seed)
    stage = recipe.stage("tune")
    data = StageData(recipe, stage)
    parts = prepare_stage(recipe, stage, data.total_steps, Start(None, 0), place)
    (model,) = parts.chunks
    (given,) = step_inputs(data, place, 1)
    batches = given.batches
    assert batches is not None
    model.set_plan(given.plan)
    parts.step._wrapped[0].begin_step([])
    losses, weights = [], []
    for batch in batches:
        assert batch.weights is not None
        of_tokens = model(batch, labels=batch.labels.clamp_min(0))
        for row in range(len(batch.labels)):
            for position in torch.nonzero(batch.labels[row] != -100).flatten().tolist():
                losses.append(of_tokens[row, position] * float(batch.weights[row, position]))
                weights.append(float(batch.weights[row, position]))
    loss = torch.stack(losses).sum() / sum(weights)
    parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    found = {name: value.numpy() for name, value in zip(parameters, gradients, strict=True)}
    return float(loss), found, len(weights), sum(weights)


def _by_step(recipe: Recipe) -> tuple[float, dict[str, np.ndarray], int]:
    place = start_groups(recipe.parallel, recipe.seed)
    stage = recipe.stage("tune")
    data = StageData(recipe, stage)
    parts = prepare_stage(recipe, stage, data.total_steps, Start(None, 0), place)
    (given,) = step_inputs(data, place, 1)
    sums = parts.step.forward_backward(given)
    (model,) = parts.chunks
    gradients = {
        name: value.main_grad.numpy().copy() for name, value in model.named_parameters() if value.requires_grad
    }
    return sums.loss, gradients, sums.supervised_tokens


def _compare(recipes: list[Recipe]) -> Any:
    return _by_hand(recipes[0]), [_by_step(recipe) for recipe in recipes]


def test_loss_and_gradients_are_those_by_hand(root: Path) -> None:
    ((loss, gradients, tokens, weight), found) = run_ranks(1, _compare, _recipes(root))[0]
    assert tokens != weight
    largest = max(np.abs(values).max() for values in gradients.values())
    for by_step in found:
        assert by_step[0] == pytest.approx(loss, rel=1e-6) and by_step[2] == tokens
        assert by_step[1].keys() == gradients.keys()
        for name, values in gradients.items():
            # fp32 sums in another order.
            np.testing.assert_allclose(by_step[1][name], values, rtol=0, atol=2e-6 * largest, err_msg=name)


@pytest.fixture(scope="module")
def alone(root: Path) -> Any:
    return observe_all(_recipes(root), "tune", 1, 2)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_weigh_as_one_process(root: Path, alone: Any, layout: str) -> None:
    ranks, parallel = LAYOUTS[layout]
    recipes = _recipes(root, parallel=parallel, output_dir=str(root / layout))
    for found, expected in zip(observe_all(recipes, "tune", ranks, 2), alone, strict=True):
        assert_same(found, expected)


def test_equal_weights_train_as_none_do(tmp_path: Path) -> None:
    recipes = []
    for name, weight in (("none", None), ("ones", 1.0), ("fours", 4.0)):
        (tmp_path / name).mkdir()
        recipes.append(tiny_recipe(tmp_path / name))
        path = recipes[-1].stage("tune").data.train
        records = json.loads(path.read_text())
        path.write_text(json.dumps([record | {"weight": weight} for record in records]))
    none, ones, fours = observe_all(recipes, "tune", 1, 2)
    assert none.losses == ones.losses and none.grad_norms == ones.grad_norms
    # A power of two changes no digit.
    assert none.losses == fours.losses and none.grad_norms == pytest.approx(fours.grad_norms, rel=1e-6)
