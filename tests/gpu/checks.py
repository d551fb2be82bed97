"""Checks inside a training process, in each precision: padding, products of frozen weights, memory, saving."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import profile

from megatron_sts.config import Recipe
from megatron_sts.data import IGNORED_LABEL
from megatron_sts.model.precision import Machine, check_machine
from megatron_sts.parallel.device import has_gpu
from megatron_sts.parallel.groups import start_groups
from megatron_sts.parallel.sequence import length_multiple, round_up
from megatron_sts.sts import StagePlanner
from megatron_sts.train.benchmark import Stepper
from megatron_sts.train.checkpoint import load_checkpoint
from megatron_sts.train.checkpoint_save import CheckpointSave
from megatron_sts.train.step_input import StepInput
from tests.gpu.kernels import activities, kernels_of, products
from tests.gpu.recipes import checked_recipe
from tests.gpu.slot import Slot

PART = "checks"


def check_precision(slot: Slot, name: str) -> None:
    """All checks in one precision."""
    changes = slot.size.precisions[name]
    check_machine(checked_recipe(slot, "checks", **changes), Machine.here())
    counted = [frozen_products] if name in slot.size.counted else []
    for check in (padding, frozen, memory, *counted):
        with slot.attempt(PART, f"{check.__name__}, {name}"):
            check(slot, name, changes)


def _stepper(recipe: Recipe, stage: str, steps: int) -> tuple[Stepper, StagePlanner]:
    place = start_groups(recipe.parallel, recipe.seed)
    return Stepper(recipe, recipe.stage(stage), steps, place), StagePlanner(recipe, recipe.stage(stage), steps, steps)


def memory(slot: Slot, name: str, changes: Any) -> None:
    """Bytes held do not grow while layers are skipped; 0 on a CPU, where torch does not count."""
    steps = slot.size.held_steps
    recipe = checked_recipe(slot, "checks", steps, tune__skip={"alpha": 0.5}, **changes)
    stepper, planner = _stepper(recipe, "tune", steps)
    held = []
    for step in range(steps):
        stepper.time(planner.plan(step))
        held.append(torch.cuda.memory_allocated() if has_gpu() else 0)
    early = max(held[: max(1, steps // 5)])
    slot.check(PART, f"memory, {name}", held[-1] <= early and (early > 0) == has_gpu(), early=early, late=held[-1])


def frozen(slot: Slot, name: str, changes: Any) -> None:
    """What the align stage leaves alone stays as it was, and is given no gradient."""
    stepper, planner = _stepper(checked_recipe(slot, "checks", 4, **changes), "align", 4)

    def digest() -> dict[str, str]:
        return {
            name: hashlib.sha256(parameter.detach().float().cpu().numpy().tobytes()).hexdigest()
            for chunk in stepper.parts.chunks
            for name, parameter in chunk.named_parameters()
            if not parameter.requires_grad
        }

    before = digest()
    for step in range(2):
        stepper.time(planner.plan(step))
    gradients = [
        parameter
        for chunk in stepper.parts.chunks
        for parameter in chunk.parameters()
        if not parameter.requires_grad and (parameter.grad is not None or hasattr(parameter, "main_grad"))
    ]
    passed = len(before) > 20 and digest() == before and not gradients
    slot.check(PART, f"frozen, {name}", passed, frozen=len(before), gradients=len(gradients))


def frozen_products(slot: Slot, name: str, changes: Any) -> None:
    """Matrix products of the language model: of a forward pass, and of passes with gradients, frozen and trained.

    Each product of the forward pass has one for the gradient of its input, and where its weight is trained one more.
    """
    recipe = checked_recipe(slot, "checks", 4, **changes)
    found = {}
    for stage, kind in (("align", "frozen"), ("tune", "trained")):
        stepper, planner = _stepper(recipe, stage, 4)
        (chunk,) = stepper.parts.chunks
        chunk.set_plan(planner.dense_plan(0))
        size = (stepper.length(planner.dense_plan(0)), recipe.stage(stage).batch.micro)
        hidden = torch.randn(*size, chunk.config.hidden_size, device=torch.cuda.current_device())
        hidden = hidden.to(chunk.config.params_dtype).requires_grad_()

        def forward(hidden: Tensor = hidden, chunk: Any = chunk) -> Tensor:
            return chunk.language(input_ids=None, position_ids=None, attention_mask=None, decoder_input=hidden)

        # What is made once, kernels chosen and caches filled, does not count.
        forward().float().square().mean().backward()
        found[kind] = _products_of(lambda forward=forward: forward().float().square().mean().backward())
        with torch.no_grad():
            found["forward"] = _products_of(forward)
    # Four products in each layer and the output layer. Equal but for a product that a library cuts in two.
    least = 4 * recipe.architecture.language.layers + 1
    passed = found["forward"] >= least and found["frozen"] < 2.5 * found["forward"] < found["trained"]
    slot.check(PART, f"frozen_products, {name}", passed, **found)


def _products_of(run: Callable[[], object]) -> int:
    with profile(activities=activities()) as recorded:
        run()
        torch.cuda.synchronize()
    return products(kernels_of(recorded))


def padding(slot: Slot, name: str, changes: Any) -> None:
    """How much loss and gradients change with the padded length, and, to compare with, with other samples.

    The distance of two gradients over the length of the first, all trained parameters taken as one vector. By blocks,
    and in bf16, a row of padding has no part in other rows. Elsewhere it may raise the largest value of a tensor, by
    which all are scaled: over the reference kernels that turns the gradient by 0.1 of its length, FP8 itself by 0.12 to
    0.18.
    """
    recipe = checked_recipe(slot, "checks", 4, **changes)
    stepper, planner = _stepper(recipe, "tune", 4)
    plan = planner.dense_plan(0)
    one, other = stepper.step_input(plan), stepper.step_input(plan)
    more = round_up(64, length_multiple(recipe))
    batches = [
        replace(
            batch,
            tokens=F.pad(batch.tokens, (0, more), value=0),
            labels=F.pad(batch.labels, (0, more), value=IGNORED_LABEL),
        )
        for batch in one.batches or ()
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
    found = {
        "loss": abs(padded_loss - loss) / abs(loss),
        "gradient": float((padded - gradient).norm() / gradient.norm()),
        # What the measure says of gradients that have little to do with each other.
        "gradient_of_others": float((of_others - gradient).norm() / gradient.norm()),
    }
    at_most = (5e-3, 0.2) if name in ("tensorwise", "delayed") else (1e-3, 0.03)
    passed = found["loss"] < at_most[0] and found["gradient"] < at_most[1] < found["gradient_of_others"]
    slot.check(PART, f"padding, {name}", passed and found["gradient_of_others"] > 0.3, added=more, **found)


def kept_and_resumed(slot: Slot, part: str, name: str, steps: int = 2) -> None:
    """Some steps with all layers and with some skipped, a checkpoint, and the same steps again from it.

    Skipped layers have not moved, others have; the steps after the checkpoint have the losses that they had.
    """
    recipe = checked_recipe(slot, f"kept_{name}", 8, **slot.size.precisions[name])
    stepper, planner = _stepper(recipe, "tune", 8)
    dense = planner.dense_plan(0)
    skipping = replace(dense, skipped_layers=frozenset({1, 2}))
    layers = stepper.parts.chunks[0].language.decoder.layers
    samples = [stepper.step_input(dense) for _ in range(steps)]

    def run(stepper: Stepper) -> list[float]:
        plans = [skipping if step % 2 else dense for step in range(steps)]
        return [stepper.parts.step.run(replace(one, plan=plan)).loss for one, plan in zip(samples, plans, strict=True)]

    def weights() -> list[Tensor]:
        return [torch.cat([p.detach().float().flatten() for p in layer.parameters()]) for layer in layers]

    first = run(stepper)
    path = CheckpointSave(recipe, "tune", steps, stepper.parts.state(), copies=False).finish()
    losses = run(stepper)
    before = weights()
    stepper.parts.step.run(replace(samples[0], plan=skipping))
    moved = [not torch.equal(old, new) for old, new in zip(before, weights(), strict=True)]
    resumed, _ = _stepper(recipe, "tune", 8)
    load_checkpoint(path, resumed.parts.chunks, resumed.parts.optimizer, steps)
    again = run(resumed)
    slot.check(
        part,
        f"skipped layers stay, {name}",
        moved[0] and all(moved[3:]) and not any(moved[1:3]) and losses[0] < first[0],
        first=first,
        losses=losses,
    )
    off = max(abs(one / other - 1) for one, other in zip(again, losses, strict=True))
    slot.check(
        part, f"saved and resumed, {name}", math.isfinite(off) and off <= 1e-3, off=off, losses=losses, again=again
    )
