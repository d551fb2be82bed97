"""A training run in which one rank meets something at a chosen point of a chosen step; runs inside a forked rank."""

import os
import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch.distributed as dist
from megatron.core.pipeline_parallel import schedules

from megatron_sts.config import Recipe
from megatron_sts.errors import MegatronStsError
from megatron_sts.exit_codes import STOPPED
from megatron_sts.train.optimizer import StageOptimizer
from megatron_sts.train.saver import Saver
from megatron_sts.train.stages import train
from megatron_sts.train.step import TrainStep
from megatron_sts.train.step_input import StepInput

POINTS = ("forward", "backward", "optimizer", "save")


def train_disturbed(recipe: Recipe, rank: int, point: str, step: int, disturb: Callable[[], Any]) -> int:
    """Train; on `rank`, at `point` of the 0-based `step` of the first stage, `disturb()` happens once."""
    patches = _patches(point, step, disturb) if dist.get_rank() == rank else []
    for patch in patches:
        patch.start()
    try:
        return STOPPED if train(recipe) else 0
    except MegatronStsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def kill_with(number: int) -> Callable[[], None]:
    """Sends this process a signal."""
    return lambda: os.kill(os.getpid(), number)


def _patches(point: str, step: int, disturb: Callable[[], Any]) -> list[Any]:
    here: dict[str, Any] = {"step": None, "done": False}
    original_run = TrainStep.run

    def run(self: TrainStep, given: StepInput, *arguments: Any, **named: Any) -> Any:
        here["step"] = given.plan.step
        return original_run(self, given, *arguments, **named)

    def once() -> None:
        if here["step"] == step and not here["done"]:
            here["done"] = True
            disturb()

    def before(original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            once()
            return original(*arguments, **named)

        return wrapped

    owner, name = {
        "forward": (schedules, "forward_step"),
        "backward": (schedules, "backward_step"),
        "optimizer": (StageOptimizer, "update"),
        "save": (Saver, "save"),
    }[point]
    return [mock.patch.object(TrainStep, "run", run), mock.patch.object(owner, name, before(getattr(owner, name)))]
