"""What training with Transformer Engine's layers does here: python -m tests.reference_kernels.trained CHECK DIRECTORY

Prints one json object. A process of its own, which imports megatron-core where Transformer Engine is to be found.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from tests.reference_kernels.install import install

install()

from megatron_sts.config import Recipe
from megatron_sts.model import precision, specs, transformer_config
from megatron_sts.parallel.groups import start_groups
from megatron_sts.planning.memory import fp8_weight_bytes
from megatron_sts.sts import StagePlanner
from megatron_sts.train.benchmark import Stepper
from tests.gpu.losses import keep, train_precision
from tests.gpu.slot import Slot
from tests.parallel.kept_activations import kept_activations
from tests.parallel.observe import Observation, assert_same, observe
from tests.plain import plain
from tests.ranks import run_ranks
from tests.tiny import ARCHITECTURE, tiny_recipe

STS = {
    "tune__skip": [
        {"alpha": 0.6, "epsilon": 0.4, "selection": "independent"},
        {"tokens": "visual", "alpha": 0.75, "selection": "independent"},
    ],
    "tune__compress": {"keep_ratio": 0.5},
}
WIDE = {"hidden_size": 256, "ffn_hidden_size": 512, "attention_heads": 4, "query_groups": 4}
SMOOTH = {"optimizer": {"epsilon": 1e-2, "weight_decay": 0.1}}
FAMILIES: dict[str, dict[str, Any]] = {
    "phi": {"family": "phi", "query_groups": 4, "partial_rotary_factor": 0.5},
    "gemma": {"family": "gemma", "query_groups": 1, "tied_embeddings": True},
}
LARGER = {**ARCHITECTURE, "language": ARCHITECTURE["language"] | {"hidden_size": 64, "ffn_hidden_size": 160}}
QWEN3 = {**LARGER, "language": LARGER["language"] | {"family": "qwen3", "attention_head_size": 16}}
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "tp2_sp": (2, {"tensor": 2, "sequence_parallel": True}),
    "pp2": (2, {"pipeline": 2}),
    "pp2_vp2": (2, {"pipeline": 2, "virtual_pipeline": 2}),
    "cp2": (2, {"context": 2}),
    "dp2": (2, {"overlap_grad_reduce": True}),
}


def exactly(root: Path) -> dict[str, Any]:
    """fp32, where rounding hides nothing: Transformer Engine's layers and optimiser do as the plain ones, in one
    process and in every layout; their checkpoint is that of the plain ones. Raises AssertionError where not."""
    # There is no fused softmax among the reference kernels.
    os.environ["NVTE_MASKED_SOFTMAX_FUSION"] = "0"
    # Training in fp32 takes the plain layers.
    for module in (specs, transformer_config):
        module.uses_transformer_engine = lambda dtype: precision.has_transformer_engine()
    one = observe(_recipe(root), "tune", 1)
    with plain():
        assert_same(one, observe(_recipe(root), "tune", 1))
    for ranks, parallel in (LAYOUTS[name] for name in ("tp2_sp", "pp2_vp2", "dp2")):
        assert_same(observe(_recipe(root, parallel=parallel), "tune", ranks), one)
    for recompute in ("full", ["layernorm", "mlp"]):
        assert_same(observe(_recipe(root, recompute=recompute), "tune", 1), one)
    for family in FAMILIES.values():
        _exactly_of_family(root, {"model__architecture__language": family})
    return {"skipped": one.skipped, "skipped_for_visual": one.skipped_for_visual}


def _exactly_of_family(root: Path, changes: dict[str, Any]) -> None:
    one = observe(_recipe(root, **changes), "tune", 1, steps=2)
    with plain():
        assert_same(one, observe(_recipe(root, **changes), "tune", 1, steps=2))
    ranks, parallel = LAYOUTS["tp2_sp"]
    assert_same(observe(_recipe(root, parallel=parallel, **changes), "tune", ranks, steps=2), one)


def in_bf16(root: Path) -> dict[str, Any]:
    """How far losses and gradient norms are from those of one process with Transformer Engine, with its attention."""
    changes = {"precision": "bf16"}
    one = observe(_recipe(root, **changes), "tune", 1)
    with plain():
        found = {"plain": _distance(observe(_recipe(root, **changes), "tune", 1), one)}
    for name, (ranks, parallel) in LAYOUTS.items():
        found[name] = _distance(observe(_recipe(root, parallel=parallel, **changes), "tune", ranks), one)
    for name, (ranks, parallel) in {"packed": (1, {}), "packed_cp2": LAYOUTS["cp2"]}.items():
        packed = _recipe(root, parallel=parallel, tune__data={"packing": True}, **changes)
        found[name] = _distance(observe(packed, "tune", ranks), one)
    found["kept"] = _kept_of_layers(root)
    return found


def _kept_of_layers(root: Path) -> float:
    """How far what a layer keeps for the backward pass is from what is planned, with the fused kernels of a GPU."""
    cases = [
        (stage, tiny_recipe(root, model__architecture=sizes, precision="bf16", recompute=recompute), for_text)
        for stage, sizes, recompute, for_text in (
            ("tune", LARGER, "none", False),
            ("tune", LARGER, ["mlp"], True),
            ("tune", QWEN3, ["layernorm"], False),
            ("align", LARGER, ["layernorm", "mlp"], False),
            ("align", LARGER, "none", False),
        )
    ]
    with patch.object(transformer_config, "has_gpu", lambda: True):
        kept = run_ranks(1, kept_activations, cases)[0]
    # One table of angles for queries and keys.
    return max(abs(one.layer / (one.planned_layer + one.rotary / 4) - 1) for one in kept)


def in_fp8(root: Path) -> dict[str, Any]:
    """Of each way to scale: distances from bf16 and of layouts from one process, and what tests/gpu asks of a GPU."""
    # Every size a multiple of 128 on each of two ranks, as blockwise asks.
    architecture = {**ARCHITECTURE, "language": ARCHITECTURE["language"] | WIDE}
    wide: dict[str, Any] = {"model__architecture": architecture}
    for stage in ("align", "tune"):
        wide |= {f"{stage}__data": {"text_tokens": 20}, f"{stage}__batch": {"global": 4, "micro": 2}}
    bf16 = observe(_recipe(root, precision="bf16", **wide), "tune", 1, steps=2)
    found: dict[str, Any] = {}
    for recipe in ("tensorwise", "delayed", "blockwise"):
        changes = {"precision": "fp8", "fp8_recipe": recipe, "output_dir": str(root / recipe), **wide}
        one = observe(_recipe(root, **changes), "tune", 1, steps=2)
        found[recipe] = {"from_bf16": _distance(one, bf16)}
        for name in ("tp2_sp", "pp2"):
            ranks, parallel = LAYOUTS[name]
            laid_out = observe(_recipe(root, parallel=parallel, **changes), "tune", ranks, steps=2)
            found[recipe][name] = _distance(laid_out, one)
        found[recipe] |= run_ranks(1, _looked_into, _recipe(root, **changes))[0]
    return found


def losses_in_fp8(root: Path) -> None:
    """Means of 50 losses over 300 steps in bf16 and each FP8 recipe, as tests/gpu compares them. Takes 10 minutes."""
    slot = Slot(root, root)
    for name in slot.size.precisions:
        run_ranks(1, train_precision, slot, name, timeout=900.0)
    keep(slot)


def _looked_into(recipe: Recipe) -> dict[str, Any]:
    found: dict[str, Any] = {"frozen": _dense_step(recipe, "align"), "trained": _dense_step(recipe, "tune")}
    return found if recipe.fp8_recipe == "delayed" else found | {"in_turn": _in_turn(recipe)}


def _in_turn(recipe: Recipe) -> list[list[float]]:
    """Losses in bf16 and FP8, by models that were built for each, and by one that takes them in turn."""
    steppers, samples, built = [], [], []
    for kind in ("bf16", "fp8"):
        one = recipe.model_copy(update={"precision": kind})
        steppers.append(Stepper(one, one.stage("tune"), 1, start_groups(one.parallel, one.seed)))
        samples.append(steppers[-1].step_input(StagePlanner(one, one.stage("tune"), 1, 1).dense_plan(0)))
        built.append(steppers[-1].parts.step.forward_backward(samples[-1]).loss)
    taken = []
    for kind, given in zip(("bf16", "fp8"), samples, strict=True):
        steppers[-1].take_precision(kind)
        taken.append(steppers[-1].parts.step.forward_backward(given).loss)
    return [built, taken]


def _dense_step(recipe: Recipe, stage: str) -> dict[str, int]:
    """Of a dense step, whose kernels are the fused ones: its FP8 products for gradients of weights, and the bytes of
    FP8 weights that it leaves."""
    stepper = Stepper(recipe, recipe.stage(stage), 1, start_groups(recipe.parallel, recipe.seed))
    extension = sys.modules["transformer_engine_torch"]
    with (
        patch.object(extension, "generic_gemm", wraps=extension.generic_gemm) as products,
        patch.object(extension, "fused_rope_forward", wraps=extension.fused_rope_forward) as rotations,
    ):
        stepper.time(StagePlanner(recipe, recipe.stage(stage), 1, 1).dense_plan(0))
    # Nothing but speed tells the fused ones from megatron-core's.
    assert rotations.called
    kept = [
        tensor
        for chunk in stepper.parts.chunks
        for module in chunk.modules()
        for weight in getattr(module, "_fp8_workspaces", {}).values()
        for tensor in weight.get_data_tensors()
    ]
    return {
        # generic_gemm(a, transpose_a, b, transpose_b, ...): only a weight's gradient sums over rows.
        "products": sum(call.args[3] for call in products.call_args_list),
        "kept_bytes": sum(tensor.numel() for tensor in kept),
        "planned_bytes": fp8_weight_bytes(recipe, 0),
    }


def _recipe(root: Path, **changes: Any) -> Recipe:
    # The few tokens of these samples would be mostly padding, which tensorwise and delayed scaling are touched by.
    return tiny_recipe(root, **(SMOOTH | STS | {"length_rounding": 1} | changes))


def _distance(found: Observation, expected: Observation) -> float:
    """The largest of the relative differences of losses and of gradient norms."""
    assert found.skipped == expected.skipped
    pairs = ((found.losses, expected.losses), (found.grad_norms, expected.grad_norms))
    return max(float(np.abs(np.array(one) / np.array(other) - 1).max()) for one, other in pairs)


CHECKS = {"exactly": exactly, "in_bf16": in_bf16, "in_fp8": in_fp8, "losses_in_fp8": losses_in_fp8}

if __name__ == "__main__":
    print(json.dumps(CHECKS[sys.argv[1]](Path(sys.argv[2]))))
