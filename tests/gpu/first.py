"""The first thing to know of a machine: does training work there, and does it train as a CPU does in fp32.

Two processes side by side. `on_cpu` trains the same few steps with plain layers, `on_device` with what a GPU uses; the
weights are drawn alike. What is compared are losses, and all gradients of the first step taken as one vector.
"""

import pickle
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megatron_sts.model.precision import Machine, check_machine, what_runs
from megatron_sts.parallel.device import has_gpu
from tests.gpu.checks import kept_and_resumed
from tests.gpu.recipes import checked_recipe
from tests.gpu.slot import Slot
from tests.gpu.speed import release
from tests.parallel.observe import Observation, observe_rank_all, put_together
from tests.plain import plain

PART = "first"
_STS = {
    "tune__skip": [{"alpha": 0.6, "epsilon": 0.4}, {"tokens": "visual", "alpha": 0.75}],
    "tune__compress": {"keep_ratio": 0.5},
}
# Adam makes a step of any gradient's sign; this large an epsilon makes one of its size.
_SMOOTH = {"optimizer": {"epsilon": 1e-2}}
_KINDS: dict[str, dict[str, Any]] = {"dense": {}, "STS": _STS}
# Later steps start from weights that were rounded differently.
_STEPS = 1
_VARIANTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bf16": ("dense", "bf16", {}),
    "FP8 tensorwise": ("dense", "tensorwise", {}),
    "bf16, STS": ("STS", "bf16", {}),
    "bf16, packed": ("dense", "bf16", {"tune__data": {"packing": True}}),
    "bf16, recompute full": ("dense", "bf16", {"recompute": "full"}),
    "FP8 tensorwise, STS": ("STS", "tensorwise", {}),
    "FP8 delayed": ("dense", "delayed", {}),
    "FP8 blockwise": ("dense", "blockwise", {}),
}
"""By name: what it is compared with, the precision, and what else its recipe has."""
_TOLERANCES = {"fp32": (1e-5, 1e-4), "bf16": (2e-3, 0.04), "fp8": (3e-2, 0.5)}
"""Of the loss, relative, and of the gradients' distance over their length. Over the reference kernels, at this size:
bf16 4e-4 and 0.013, FP8 1.3e-2 (blockwise) and 0.25 (delayed, which has no scale yet)."""


def on_cpu(slot: Slot) -> None:
    """The losses and gradients that are expected, for `on_device`."""
    with plain():
        recipes = [
            checked_recipe(slot, "reference", precision="fp32", **_SMOOTH, **changes) for changes in _KINDS.values()
        ]
        found = put_together([observe_rank_all(recipes, "tune", _STEPS)])
    file = _reference(slot)
    file.with_suffix(".partial").write_bytes(pickle.dumps(dict(zip(_KINDS, found, strict=True))))
    file.with_suffix(".partial").rename(file)


def on_device(slot: Slot) -> None:
    """Steps in each precision against those of the CPU, then what is skipped, saved and resumed."""
    slot.record(PART, "machine", **_machine(slot))
    found = {}
    for name, (kind, precision, changes) in {**_VARIANTS, "fp32": ("dense", "fp32", {})}.items():
        with slot.attempt(PART, name):
            precisions = {**slot.size.precisions, "fp32": {"precision": "fp32"}}
            recipe = checked_recipe(slot, "first", **_SMOOTH, **_KINDS[kind], **changes, **precisions[precision])
            check_machine(recipe, Machine.here())
            found[name] = _observed(recipe)
            slot.record(PART, "ran", variant=name, losses=found[name].losses)
        if name == "bf16":
            _how_it_ran(slot)
    for name in ("bf16", "tensorwise"):
        with slot.attempt(PART, f"saved and resumed, {name}"):
            kept_and_resumed(slot, PART, name)
    with slot.attempt(PART, "expected of the CPU"):
        expected = _expected(slot)
        for name, one in found.items():
            kind, precision, _ = _VARIANTS.get(name, ("dense", "fp32", {}))
            compare(slot, PART, name, one, expected[kind], _TOLERANCES.get(precision, _TOLERANCES["fp8"]))
    with slot.attempt(PART, "product"):
        slot.record(PART, "product of matrices", flops_per_second=measured_ceiling(slot.size.product))
    release()


def compare(
    slot: Slot, part: str, name: str, found: Observation, expected: Observation, tolerances: tuple[float, float]
) -> None:
    """Check the loss and the gradients of the first step."""
    loss_off = abs(found.losses[0] / expected.losses[0] - 1)
    pairs = [(found.gradients[key] - gradient, gradient) for key, gradient in expected.gradients.items()]
    difference, length = (np.sqrt(sum(np.square(one).sum() for one in parts)) for parts in zip(*pairs, strict=True))
    distance = float(difference / length)
    slot.check(
        part,
        name,
        bool(loss_off <= tolerances[0] and distance <= tolerances[1] and found.skipped == expected.skipped),
        loss=found.losses[0],
        expected_loss=expected.losses[0],
        loss_off=loss_off,
        gradient_off=distance,
        tolerances=tolerances,
    )


def measured_ceiling(size: int, repeats: int = 20) -> float:
    """FLOP/s of a bf16 matrix product of random data: the median of timed products."""
    device = "cuda" if has_gpu() else "cpu"
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    times = []
    for number in range(repeats + 5):
        if has_gpu():
            torch.cuda.synchronize()
        began = time.perf_counter()
        left @ right
        if has_gpu():
            torch.cuda.synchronize()
        if number >= 5:
            times.append(time.perf_counter() - began)
    return 2 * size**3 / sorted(times)[repeats // 2]


def _machine(slot: Slot) -> dict[str, Any]:
    recipe = checked_recipe(slot, "first", **slot.size.precisions["tensorwise"])
    found: dict[str, Any] = {"runs_on": what_runs(recipe), "engine_problem": Machine.here().engine_problem}
    found["versions"] = {
        name: version(name) for name in ("torch", "megatron-core", "transformers", "transformer-engine")
    }
    if has_gpu():
        memory = torch.cuda.get_device_properties(0).total_memory
        found |= {"memory": memory, "cudnn": torch.backends.cudnn.version(), "nccl": list(torch.cuda.nccl.version())}
    return found


def _how_it_ran(slot: Slot) -> None:
    """Which attention ran, and whether the small fusions were compiled; both could fall back without a word."""
    with slot.attempt(PART, "attention is fused"):
        from transformer_engine.pytorch.attention.dot_product_attention import _attention_backends as backends

        found = {name: str(value) for name, value in backends.items() if name.startswith(("use_", "flash_", "fused_"))}
        slot.check(
            PART,
            "attention is fused",
            bool(backends["use_fused_attention"] or backends["use_flash_attention"]),
            **found,
        )
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    slot.check(PART, "fusions are compiled", graphs > 0 or not has_gpu(), graphs=graphs)


def _observed(recipe: Any) -> Observation:
    (found,) = put_together([observe_rank_all([recipe], "tune", _STEPS)])
    release()
    return found


def _reference(slot: Slot) -> Path:
    return slot.scratch / "reference.pickle"


def _expected(slot: Slot) -> dict[str, Observation]:
    """What `on_cpu` has found; it takes some seconds."""
    for _ in range(600):
        if _reference(slot).is_file():
            found: dict[str, Observation] = pickle.loads(_reference(slot).read_bytes())
            return found
        time.sleep(0.1)
    raise TimeoutError("the CPU has not found what is expected")
