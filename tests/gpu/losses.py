"""Whether FP8 trains as bf16 does: the losses of the same steps, over data that is read, by the loop that trains."""

import json

from megatron_sts.config import METRICS_FILE, Recipe
from megatron_sts.train.stages import train
from tests.gpu.recipes import checked_recipe
from tests.gpu.slot import Slot

PART = "losses"
_WIDTH = 50


def train_precision(slot: Slot, name: str) -> None:
    """The tune stage in one precision, from fresh weights."""
    train(_recipe(slot, name))


def keep(slot: Slot) -> None:
    """Compare the losses as far as they have come, in this process, when all have ended or were ended."""
    losses = {name: losses_of(_recipe(slot, name)) for name in slot.size.precisions}
    for name, values in losses.items():
        slot.record(PART, "losses", precision=name, steps=len(values), means=means(values))
    for name, values in losses.items():
        if name == "bf16":
            continue
        steps = min(len(values), len(losses["bf16"]))
        width = min(_WIDTH, slot.size.loss_steps)
        found, expected = (means(one[: steps - steps % width], width) for one in (values, losses["bf16"]))
        off = max((abs(one / other - 1) for one, other in zip(found, expected, strict=True)), default=float("nan"))
        # Single steps of a tiny batch are noisy; what counts is the course of the loss.
        slot.check(PART, f"{name} within 2% of bf16", off <= 0.02, off=off, steps=steps, wanted=slot.size.loss_steps)


def means(values: list[float], width: int = _WIDTH) -> list[float]:
    """Of so many losses after one another."""
    parts = [values[start : start + width] for start in range(0, len(values), width)]
    return [sum(part) / len(part) for part in parts]


def losses_of(recipe: Recipe) -> list[float]:
    """The losses that a run has written by now."""
    file = recipe.output_dir / METRICS_FILE
    lines = file.read_text().splitlines() if file.is_file() else []
    return [json.loads(line)["loss"] for line in lines]


def _recipe(slot: Slot, name: str) -> Recipe:
    return only_tune(checked_recipe(slot, f"losses_{name}", slot.size.loss_steps, **slot.size.precisions[name]))


def only_tune(recipe: Recipe) -> Recipe:
    """Without alignment: the language model is drawn, not aligned."""
    return recipe.model_copy(update={"stages": (recipe.stage("tune"),)})
