"""Checks that look inside a training process: python -m tests.gpu.inside CHECK RECIPE.yaml STEPS

Prints one json object. Also runs on a CPU, at the size of the recipe.
"""

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import profile

from megatron_sts.config import Recipe, load_recipe
from megatron_sts.data import IGNORED_LABEL
from megatron_sts.model.precision import Machine, check_machine, what_runs
from megatron_sts.parallel.device import has_gpu
from megatron_sts.parallel.groups import start_groups, stop_groups
from megatron_sts.parallel.sequence import length_multiple, round_up
from megatron_sts.sts import StagePlanner
from megatron_sts.train.benchmark import Stepper
from megatron_sts.train.checkpoint import load_checkpoint
from megatron_sts.train.checkpoint_save import CheckpointSave
from megatron_sts.train.step_input import StepInput
from tests.gpu.kernels import activities, kernels_of, products


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


def weight_gradients(recipe: Recipe, steps: int) -> dict[str, Any]:
    """Matrix products of the language model: of a forward pass, and of passes with gradients, frozen and trained.

    Each product of the forward pass has one for the gradient of its input, and where its weight is trained one more.
    """
    found = {}
    for stage, name in (("align", "frozen"), ("tune", "trained")):
        stepper, planner = _stepper(recipe, stage, steps)
        (chunk,) = stepper.parts.chunks
        chunk.set_plan(planner.dense_plan(0))
        size = (stepper.length(planner.dense_plan(0)), recipe.stage(stage).batch.micro)
        hidden = torch.randn(*size, chunk.config.hidden_size, device=torch.cuda.current_device())
        hidden = hidden.to(chunk.config.params_dtype).requires_grad_()

        def forward(hidden: Tensor = hidden, chunk: Any = chunk) -> Tensor:
            return chunk.language(input_ids=None, position_ids=None, attention_mask=None, decoder_input=hidden)

        # What is made once, kernels chosen and caches filled, does not count.
        forward().float().square().mean().backward()
        found[name] = _products_of(lambda forward=forward: forward().float().square().mean().backward())
        with torch.no_grad():
            found["forward"] = _products_of(forward)
    return found


def _products_of(run: Callable[[], object]) -> int:
    with profile(activities=activities()) as recorded:
        run()
        torch.cuda.synchronize()
    return products(kernels_of(recorded))


def padding(recipe: Recipe, steps: int) -> dict[str, Any]:
    """How much loss and gradients change with the padded length, and, to compare with, with other samples.

    The distance of two gradients over the length of the first, all trained parameters taken as one vector.
    """
    stepper, planner = _stepper(recipe, "tune", steps)
    one, other = (stepper.step_input(planner.dense_plan(0)) for _ in range(2))
    more = round_up(64, length_multiple(recipe))
    assert one.batches is not None
    batches = [
        replace(
            batch,
            tokens=F.pad(batch.tokens, (0, more), value=0),
            labels=F.pad(batch.labels, (0, more), value=IGNORED_LABEL),
        )
        for batch in one.batches
    ]
    longer = replace(one, batches=batches, length=one.length + more)

    def gradients(given: StepInput) -> tuple[float, Tensor]:
        sums = stepper.parts.step.forward_backward(given)
        grads = [parameter.main_grad.flatten() for parameter in stepper.parts.chunks[0].parameters() if _has(parameter)]
        return sums.loss, torch.cat(grads).clone()

    def _has(parameter: Any) -> bool:
        return parameter.requires_grad and hasattr(parameter, "main_grad")

    # Delayed scaling starts without a scale: what is compared comes after it has seen these samples.
    gradients(one)
    (loss, gradient), (padded_loss, padded), (_, of_others) = map(gradients, (one, longer, other))
    return {
        "added": more,
        "loss": abs(padded_loss - loss) / abs(loss),
        "gradient": float((padded - gradient).norm() / gradient.norm()),
        "gradient_of_others": float((of_others - gradient).norm() / gradient.norm()),
    }


def quick(recipe: Recipe, steps: int) -> dict[str, Any]:
    """Some steps with all layers and with some skipped, a checkpoint, and the same steps again from it.

    losses, again: of the steps after the checkpoint. moved: whether a layer that ran has moved; still: whether the
    skipped ones have not.
    """
    stepper, planner = _stepper(recipe, "tune", 2 * steps + 1)
    dense = planner.dense_plan(0)
    skipping = replace(dense, skipped_layers=frozenset({1, 2}))
    layers = stepper.parts.chunks[0].language.decoder.layers

    def run(stepper: Stepper) -> list[float]:
        generator = torch.Generator().manual_seed(1)
        stepper._generator = generator
        losses = []
        for step in range(steps):
            plan = skipping if step % 2 else dense
            losses.append(stepper.parts.step.run(stepper.step_input(plan)).loss)
        return losses

    def weights() -> list[Tensor]:
        return [torch.cat([p.detach().float().flatten() for p in layer.parameters()]) for layer in layers]

    first = run(stepper)
    path = CheckpointSave(recipe, "tune", steps, stepper.parts.state(), copies=False).finish()
    losses = run(stepper)
    before = weights()
    stepper.parts.step.run(stepper.step_input(skipping))
    moved = [not torch.equal(old, new) for old, new in zip(before, weights(), strict=True)]
    again, _ = _stepper(recipe, "tune", 2 * steps + 1)
    load_checkpoint(path, again.parts.chunks, again.parts.optimizer, steps)
    return {
        "runs_on": what_runs(recipe),
        "first": first,
        "losses": losses,
        "again": run(again),
        "moved": moved[0] and all(moved[3:]),
        "still": not any(moved[1:3]),
    }


CHECKS = {
    "memory": memory,
    "frozen": frozen,
    "weight_gradients": weight_gradients,
    "padding": padding,
    "quick": quick,
}

if __name__ == "__main__":
    check, path, count = sys.argv[1:]
    wanted = load_recipe(path, check_files=False)
    check_machine(wanted, Machine.here())
    found = CHECKS[check](wanted, int(count))
    stop_groups()
    print(json.dumps(found))
