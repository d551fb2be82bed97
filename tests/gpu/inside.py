"""Checks that look inside a training process: python -m tests.gpu.inside CHECK RECIPE.yaml STEPS

Prints one json object. Also runs on a CPU, at the size of the recipe.
"""

import hashlib
import json
import sys
from typing import Any

import torch

from megatron_sts.config import Recipe, load_recipe
from megatron_sts.parallel.device import has_gpu
from megatron_sts.parallel.groups import start_groups, stop_groups
from megatron_sts.sts import StagePlanner
from megatron_sts.train.benchmark import Stepper


def _stepper(recipe: Recipe, stage: str, steps: int) -> tuple[Stepper, StagePlanner]:
    place = start_groups(recipe.parallel, recipe.seed)
    return Stepper(recipe, recipe.stage(stage), steps, place), StagePlanner(recipe, recipe.stage(stage), steps, steps)


def memory(recipe: Recipe, steps: int) -> dict[str, Any]:
    """Bytes held after a fifth of the steps and after all; 0 on a CPU, where torch does not count."""
    stepper, planner = _stepper(recipe, "tune", steps)
    held = []
    for step in range(steps):
        stepper.time(planner.plan(step))
        held.append(torch.cuda.memory_allocated() if has_gpu() else 0)
    return {"early": max(held[: max(1, steps // 5)]), "late": held[-1], "steps": len(held)}


def frozen(recipe: Recipe, steps: int) -> dict[str, Any]:
    """Hashes of what the align stage leaves alone, before and after, and how many gradients it was given."""
    stepper, planner = _stepper(recipe, "align", steps)

    def digest() -> dict[str, str]:
        return {
            name: hashlib.sha256(parameter.detach().float().cpu().numpy().tobytes()).hexdigest()
            for chunk in stepper.parts.chunks
            for name, parameter in chunk.named_parameters()
            if not parameter.requires_grad
        }

    before = digest()
    for step in range(steps):
        stepper.time(planner.plan(step))
    gradients = [
        parameter
        for chunk in stepper.parts.chunks
        for parameter in chunk.parameters()
        if not parameter.requires_grad and (parameter.grad is not None or hasattr(parameter, "main_grad"))
    ]
    return {"frozen": len(before), "unchanged": digest() == before, "gradients": len(gradients)}


CHECKS = {"memory": memory, "frozen": frozen}

if __name__ == "__main__":
    check, path, count = sys.argv[1:]
    found = CHECKS[check](load_recipe(path, check_files=False), int(count))
    stop_groups()
    print(json.dumps(found))
