"""The recipes of the parts: a small one that is checked, and LLaVA-1.5-7B's shapes, which are timed."""

import fcntl
from pathlib import Path
from typing import Any

from megatron_sts.config import Recipe, load_recipe
from tests.gpu.slot import Slot
from tests.tiny import ARCHITECTURE, tiny_data, tiny_recipe, tiny_tokenizer

_BENCHMARK = Path(__file__).resolve().parents[2] / "examples" / "benchmark_h200" / "sts.yaml"


def checked_recipe(slot: Slot, name: str, steps: int = 4, **changes: Any) -> Recipe:
    """A small recipe over data made on the spot, in bf16, each stage of `steps` steps; output in a folder of that
    name."""
    root = data_of(slot)
    architecture = {**ARCHITECTURE, "language": ARCHITECTURE["language"] | slot.size.checked}
    defaults: dict[str, Any] = {
        "precision": "bf16",
        "output_dir": str(slot.scratch / name),
        "model__architecture": architecture,
    }
    for stage in ("align", "tune"):
        # One micro-batch a step: on a GPU a small model takes as long as its launches.
        batch = {"global": 8, "micro": 8}
        defaults |= {f"{stage}__steps": steps, f"{stage}__data": {"text_tokens": 20}, f"{stage}__batch": batch}
    defaults |= {"tune__learning_rate": {"projector": 1e-3, "language": 3e-4}}
    return tiny_recipe(root, **defaults | changes)


def data_of(slot: Slot) -> Path:
    """The checks' data and tokenizer, made by the first that asks."""
    root = slot.scratch / "data"
    root.mkdir(exist_ok=True)
    with (root / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (root / "tokenizer").is_dir():
            # As many records as the steps see: of fewer, learned by heart, the loss goes to zero and has no 2 %.
            tiny_data(root, records=max(24, 8 * slot.size.loss_steps))
            tiny_tokenizer(root / "tokenizer")
    return root


def timed_recipe(slot: Slot, *overrides: str) -> Recipe:
    """LLaVA-1.5-7B's shapes at the slot's size."""
    return load_recipe(str(_BENCHMARK), [*slot.size.timed, *overrides, *slot.overrides], check_files=False)
