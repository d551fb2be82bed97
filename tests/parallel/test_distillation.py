"""Full steps that learn from the sparse step: as computed by hand in torch, and in every layout as in one process.

Tolerances are those of test_layouts.py; a divergence is a difference of logarithms that nearly cancel (see observe.py).
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from megatron_sts.config import Recipe
from megatron_sts.parallel.groups import start_groups
from megatron_sts.sts import step_flops
from megatron_sts.train.loop import prepare_stage
from megatron_sts.train.resume import Start
from megatron_sts.train.stage_data import StageData
from tests.parallel.observe import Observation, assert_same, observe_all, step_inputs
from tests.parallel.test_compression import records_of_many_images
from tests.ranks import run_ranks
from tests.tiny import tiny_recipe

VISUAL = {"tokens": "visual", "alpha": 0.75, "schedule": "constant", "selection": "independent"}
ALL = {"alpha": 0.5, "schedule": "constant", "selection": "independent"}
# Fresh weights predict nearly the same whatever is left out: a large weight lets the term move the gradients.
FULL = {"full_share": 1.0, "distill": 50.0}
CASES: dict[str, dict[str, Any]] = {
    "visual": {"tune__skip": VISUAL | FULL},
    # The full steps of compression alone: half of the layers are skipped in them too.
    "compressed": {
        "tune__skip": ALL,
        "tune__compress": {"strategy": "random", "keep_ratio": 0.3, "full_share": 0.5, "distill": 30.0},
        "recompute": "full",
    },
    "packed": {
        "tune__skip": VISUAL | FULL,
        "tune__compress": {"keep_ratio": 0.3} | FULL,
        "tune__data": {"packing": True},
    },
}
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "tp2": (2, {"tensor": 2}),
    "pp2_vp2": (2, {"pipeline": 2, "virtual_pipeline": 2}),
    "dp2": (2, {"overlap_grad_reduce": True, "overlap_param_gather": True, "bucket_parameters": 3000}),
    "tp2_sp_cp2": (4, {"tensor": 2, "sequence_parallel": True, "context": 2}),
    "pp2_cp2": (4, {"pipeline": 2, "context": 2}),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records with no image to three, some of whose answers weigh more than others."""
    root = records_of_many_images(tmp_path_factory.mktemp("distillation"))
    path = root / "train.json"
    records = json.loads(path.read_text())
    for number, record in enumerate(records):
        record["weight"] = 0.5 + number % 3
    path.write_text(json.dumps(records))
    return root


def _recipes(root: Path, parallel: dict[str, Any], **changes: Any) -> list[Recipe]:
    distributed = {"distributed": True} if parallel.get("overlap_param_gather") else {}
    common = {"optimizer": {"epsilon": 1e-2} | distributed, "tune__batch": {"global": 8, "micro": 2}} | changes
    return [tiny_recipe(root, parallel=parallel, **(common | case)) for case in CASES.values()]


@pytest.fixture(scope="module")
def alone(root: Path) -> list[Observation]:
    return observe_all(_recipes(root, {}), "tune", 1, steps=2)


def _by_hand(recipe: Recipe) -> dict[str, Any]:
    """The first step's loss, divergence and gradients, from whole logits, beside those of the step itself."""
    place, stage = start_groups(recipe.parallel, recipe.seed), recipe.stage("tune")
    data = StageData(recipe, stage)
    parts = prepare_stage(recipe, stage, data.total_steps, Start(None, 0), place)
    (model,) = parts.chunks
    ((given,),) = (list(step_inputs(data, place, 1)),)
    sums = parts.step.forward_backward(given)
    parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
    of_step = {name: value.main_grad.numpy().copy() for name, value in parameters.items()}

    parts.step._wrapped[0].begin_step([])
    assert given.teacher is not None and given.teacher.plan.leaves_out[1] and not any(given.plan.leaves_out)
    logits = []
    for one in (given.teacher, given):
        model.set_plan(one.plan)
        rows = []
        assert one.batches is not None
        for number, batch in enumerate(one.batches):
            text = None if one.text is None else model.text_rows(one.text[number], (one.length,))
            rows.append(model(batch, text=text)[batch.labels != -100])
        logits.append(torch.cat(rows))
    batches = given.batches or []
    labels = torch.cat([batch.labels[batch.labels != -100] for batch in batches])
    weights = torch.cat([batch.weights[batch.labels != -100] for batch in batches if batch.weights is not None])
    teacher, student = logits[0].detach().softmax(-1), logits[1].log_softmax(-1)
    divergence = (F.kl_div(student, teacher, reduction="none").sum(-1) * weights).sum() / weights.sum()
    loss = (F.nll_loss(student, labels, reduction="none") * weights).sum() / weights.sum()
    gradients = torch.autograd.grad(loss + stage.distill * divergence, list(parameters.values()))

    plan, shape = given.teacher.plan, data.shape(given.teacher.plan)
    forward = step_flops(
        recipe.architecture,
        (),
        rows=shape.rows,
        images=shape.images,
        length=shape.length,
        visual_tokens=plan.visual_tokens,
        layers_run=recipe.architecture.language.layers,
        layers_skipped_for_visual=len(plan.layers_skipped_for_visual),
        text_tokens=shape.tokens - shape.images * plan.visual_tokens,
    )
    executed, dense = data.flops(given.plan, data.shape(given.plan))
    assert executed.total == pytest.approx(dense.total + forward.total)
    return {
        "step": (sums.loss, sums.distill_loss),
        "by hand": (loss.item(), divergence.item()),
        "gradients": {name: (of_step[name], value.numpy()) for name, value in zip(parameters, gradients, strict=True)},
    }


def test_loss_divergence_and_gradients_are_those_by_hand(root):
    (found,) = run_ranks(1, _by_hand, _recipes(root, {})[0])
    assert found["step"] == pytest.approx(found["by hand"], rel=1e-5)
    assert found["step"][1] > 1e-4
    for name, (of_step, by_hand) in found["gradients"].items():
        largest = np.abs(by_hand).max()
        np.testing.assert_allclose(of_step, by_hand, rtol=0, atol=2e-5 * max(largest, 1e-3), err_msg=name)


def test_full_steps_alone_distill(alone):
    for observation, full in zip(alone, (2, 1, 2), strict=True):
        assert sum(loss is not None and loss > 0 for loss in observation.distill_losses) == full


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_distill_as_one_process(root, alone, layout):
    ranks, parallel = LAYOUTS[layout]
    for found, expected in zip(observe_all(_recipes(root, parallel), "tune", ranks, steps=2), alone, strict=True):
        assert_same(found, expected)


def test_half_precision_distills_over_tensor_parallel_ranks(root, alone):
    layout = {"tensor": 2, "pipeline": 2, "sequence_parallel": True}
    (expected,) = observe_all(_recipes(root, {}, precision="bf16")[:1], "tune", 1, steps=1)
    (found,) = observe_all(_recipes(root, layout, precision="bf16")[:1], "tune", 4, steps=1)
    # bf16 has 8 digits of a binary fraction: logits differ by some thousandths, and their divergence with them.
    assert found.distill_losses[0] == pytest.approx(expected.distill_losses[0], rel=0.1)
    assert expected.distill_losses[0] == pytest.approx(alone[0].distill_losses[0], rel=0.2)
