"""What is loaded: checkpoints of earlier versions bitwise, those of another model not at all, with the reason."""

import copy
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from megatron_sts.config import Recipe
from megatron_sts.errors import CheckpointError
from megatron_sts.parallel.groups import start_groups
from megatron_sts.sts import StagePlanner
from megatron_sts.train.benchmark import Stepper
from megatron_sts.train.checkpoint import load_checkpoint
from megatron_sts.train.checkpoint_save import CheckpointSave
from megatron_sts.train.optimizer_state import stepped_tensors
from tests.parallel.test_fused_optimizers import stand_ins
from tests.ranks import run_ranks
from tests.tiny import ARCHITECTURE, tiny_recipe

BASE = {"tune__data": {"text_tokens": 20}}


def _stepper(recipe: Recipe) -> Stepper:
    return Stepper(recipe, recipe.stage("tune"), 4, start_groups(recipe.parallel, recipe.seed))


def _state(stepper: Stepper) -> dict[tuple[int, int, str], torch.Tensor]:
    """Copies of what the optimiser holds, by the number of a parameter, where its part begins, and the name."""
    numbers = {id(p): n for chunk in stepper.parts.chunks for n, p in enumerate(chunk.parameters())}
    found = {}
    for inner in stepper.parts.optimizer.inner.chained_optimizers:
        for stepped in stepped_tensors(inner):
            held = dict(inner.optimizer.state[stepped.tensor]) | {"master": stepped.tensor}
            for name, value in held.items():
                found[numbers[id(stepped.parameter)], stepped.start, name] = value.detach().clone()
    return found


def _in_the_form_of_earlier_versions(recipe: Recipe) -> tuple[int, int, bool]:
    """Trained, saved as megatron-core does it, loaded into a second model: updates, tensors, whether they are equal."""
    with ExitStack() as patches:
        for library in stand_ins():
            patches.enter_context(library)
        trained, other = _stepper(recipe), _stepper(recipe)
        planner = StagePlanner(recipe, recipe.stage("tune"), 4, 4)
        trained.time(planner.plan(0))
        state: dict[str, Any] = {"model0": trained.parts.chunks[0].sharded_state_dict()}
        metadata = {"distrib_optim_sharding_type": "fully_reshardable"}
        state["optimizer"] = trained.parts.optimizer.inner.sharded_state_dict(dict(state), metadata=metadata)
        path = CheckpointSave(recipe, "tune", 2, state, copies=False).finish()
        load_checkpoint(path, other.parts.chunks, other.parts.optimizer, 3)
        expected, found = _state(trained), _state(other)
        assert expected.keys() == found.keys()
        same = all(torch.equal(value, found[key]) for key, value in expected.items())
    return other.parts.optimizer.updates, len(found), same


def _all_forms(recipes: list[Recipe]) -> list[tuple[int, int, bool]]:
    return [_in_the_form_of_earlier_versions(recipe) for recipe in recipes]


def test_optimizer_states_as_megatron_core_saves_them_are_loaded_bitwise(tmp_path: Path) -> None:
    recipes = [
        tiny_recipe(
            tmp_path, output_dir=str(tmp_path / f"{on}"), precision="bf16", optimizer={"distributed": on}, **BASE
        )
        for on in (True, False)
    ]
    for rank in run_ranks(2, _all_forms, recipes):
        for updates, tensors, same in rank:
            assert updates == 1 and tensors > 3 and same


def _refusals(recipes: list[Recipe]) -> list[str]:
    stepper = _stepper(recipes[0])
    path = CheckpointSave(recipes[0], "tune", 1, stepper.parts.state(), copies=False).finish()
    refusals = []
    for recipe in recipes[1:]:
        other = _stepper(recipe)
        try:
            load_checkpoint(path, other.parts.chunks, other.parts.optimizer, 1)
        except CheckpointError as error:
            refusals.append(str(error))
    return refusals


def test_a_checkpoint_of_another_model_or_optimizer_is_refused_in_a_line(tmp_path: Path) -> None:
    wider = copy.deepcopy(ARCHITECTURE)
    wider["language"]["ffn_hidden_size"] = 96
    sgd = {"optimizer": {"kind": "sgd"}}
    recipes = [tiny_recipe(tmp_path, **BASE, **changes) for changes in ({}, {"model": {"architecture": wider}}, sgd)]
    for refusals in run_ranks(2, _refusals, recipes):
        of_model, of_optimizer = refusals
        for refusal in refusals:
            assert "tune-00000001 does not fit the recipe's model and optimizer, or is damaged: " in refusal
            assert "\n" not in refusal and len(refusal) < 400
        # Of whichever linear layer comes first: 64 columns of the second, or twice 64 rows, [4, 128, 32], of the first.
        assert "mlp.linear_fc" in of_model and (("64" in of_model and "96" in of_model) or "(4, 192, 32)" in of_model)
        assert "momentum_buffer" in of_optimizer and "not in state dict" in of_optimizer
