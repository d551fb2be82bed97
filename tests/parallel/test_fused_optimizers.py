"""Shows that the optimisers of Transformer Engine and apex, by a stand-in that behaves like them, skip and resume.

The stand-in makes its moments in the first step, counts steps by parameter group, and passes over what has no gradient,
as transformer_engine.pytorch.optimizers.FusedAdam (2.11) does. No library of the two can be loaded without a GPU.
"""

from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from megatron.core import optimizer as megatron_optimizer
from megatron.core.optimizer import distrib_optimizer

from megatron_sts.config import Recipe
from megatron_sts.parallel.groups import start_groups
from megatron_sts.sts import StagePlanner
from megatron_sts.train.benchmark import Stepper
from megatron_sts.train.checkpoint import load_checkpoint
from megatron_sts.train.checkpoint_save import CheckpointSave
from tests.ranks import run_ranks
from tests.tiny import tiny_recipe


class FusedAdam(torch.optim.Optimizer):
    """AdamW as Transformer Engine's; `adam_w_mode` as there."""

    def __init__(self, params, lr, betas, eps, weight_decay, adam_w_mode, capturable=False):
        assert adam_w_mode and not capturable
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            if not group["params"]:
                continue
            group["step"] = group.get("step", 0) + 1
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
                if parameter.grad is None:
                    continue
                first, second = state["exp_avg"], state["exp_avg_sq"]
                first.lerp_(parameter.grad, 1 - beta1)
                second.lerp_(parameter.grad.square(), 1 - beta2)
                denominator = (second / (1 - beta2 ** group["step"])).sqrt_().add_(group["eps"])
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.addcdiv_(first, denominator, value=-group["lr"] / (1 - beta1 ** group["step"]))


class FusedSGD(torch.optim.SGD):
    """By its type another one than torch's."""


def stand_ins() -> tuple[Any, ...]:
    """Patches that put the stand-ins where megatron-core takes another library's optimisers from."""
    return (
        patch.multiple(megatron_optimizer, Adam=FusedAdam, SGD=FusedSGD, USING_PYTORCH_OPTIMIZER=False),
        patch.multiple(distrib_optimizer, Adam=FusedAdam, HAVE_APEX_OR_TE=True, USING_TE_OPTIMIZER=True),
    )


def _stepper(recipe: Recipe) -> tuple[Stepper, StagePlanner]:
    stage = recipe.stage("tune")
    stepper = Stepper(recipe, stage, 4, start_groups(recipe.parallel, recipe.seed))
    return stepper, StagePlanner(recipe, stage, 4, 4)


def _train(recipe: Recipe, stand_in: bool, save_at: int | None = None) -> dict[str, object]:
    """Weights after four steps; with `save_at` those of a second model, which takes over there from a checkpoint."""
    with ExitStack() as patches:
        for library in stand_ins() if stand_in else ():
            patches.enter_context(library)
        stepper, planner = _stepper(recipe)
        for step in range(4):
            if step == save_at:
                path = CheckpointSave(recipe, "tune", step, stepper.parts.state(), copies=False).finish()
                generator = stepper._generator
                stepper, planner = _stepper(recipe)
                stepper._generator = generator
                load_checkpoint(path, stepper.parts.chunks, stepper.parts.optimizer, step)
            stepper.time(planner.plan(step))
        kinds = {type(inner.optimizer).__name__ for inner in stepper.parts.optimizer.inner.chained_optimizers}
        weights = {
            name: parameter.detach().numpy().copy()
            for chunk in stepper.parts.chunks
            for name, parameter in chunk.named_parameters()
        }
    return {"kinds": kinds, **weights}


def _all(recipe: Recipe, *saves: int) -> list[dict[str, object]]:
    return [_train(recipe, False), _train(recipe, True), *(_train(recipe, True, save_at) for save_at in saves)]


def test_adam_of_another_library_skips_and_resumes_as_ours(tmp_path: Path):
    recipe = tiny_recipe(
        tmp_path,
        tune__data={"text_tokens": 20},
        tune__skip={"alpha": 1.0, "epsilon": 0.0, "schedule": "constant", "skip_groups": 4},
        optimizer={"distributed": True, "weight_decay": 0.1},
    )
    for ours, other, saved_first, resumed in run_ranks(2, _all, recipe, 0, 2):
        assert ours.pop("kinds") == {"SharedStepAdamW"} and other.pop("kinds") == {"FusedAdam"}
        for name, weight in other.items():
            assert weight == pytest.approx(ours[name], abs=1e-6), name
            assert (weight == saved_first[name]).all() and (weight == resumed[name]).all(), name


def test_sgd_is_torchs_also_where_another_library_has_one(tmp_path: Path):
    recipe = tiny_recipe(tmp_path, tune__data={"text_tokens": 20}, optimizer={"kind": "sgd"})
    ((ours, other, resumed),) = run_ranks(1, _all, recipe, 2)
    assert ours["kinds"] == other["kinds"] == resumed["kinds"] == {"SGD"}
    del ours["kinds"]
    for name, weight in ours.items():
        assert (weight == other[name]).all() and (weight == resumed[name]).all(), name
