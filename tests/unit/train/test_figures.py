"""Shows the keys of a line of metrics.jsonl, and the numbers a plotting service gets from it."""

import json
from dataclasses import replace

import pytest

from megatron_sts.train.figures import StepFigures

FIGURES = StepFigures(
    stage="tune",
    step=3,
    loss=1.5,
    grad_norm=0.25,
    learning_rate=1e-3,
    step_time_s=0.5,
    data_wait_s=0.125,
    save_stall_s=0.0625,
    tokens_per_second=200.0,
    sequence_length=64,
    visual_tokens_kept=128,
    visual_tokens_total=256,
    layers_skipped=[1, 3],
    layers_skipped_for_visual=[0, 2],
    flops_dense=8e9,
    flops_executed=6e9,
    dropped_step=False,
)


def test_a_line_has_the_keys_that_others_read():
    assert list(json.loads(json.dumps(FIGURES.record()))) == [
        "stage",
        "step",
        "loss",
        "grad_norm",
        "learning_rate",
        "step_time_s",
        "data_wait_s",
        "save_stall_s",
        "tokens_per_second",
        "sequence_length",
        "visual_tokens_kept",
        "visual_tokens_total",
        "layers_skipped",
        "layers_skipped_for_visual",
        "flops_dense",
        "flops_executed",
        "dropped_step",
        "distill_loss",
        "validation_loss",
        "validation_loss_sparse",
    ]


def test_scalars_are_numbers_alone():
    scalars = FIGURES.scalars()
    assert all(type(value) is float for value in scalars.values())
    unmeasured = {"distill_loss", "validation_loss", "validation_loss_sparse"}
    assert scalars.keys() == FIGURES.record().keys() - {"stage", "step"} - unmeasured | {"flops_saved"}
    assert replace(FIGURES, validation_loss=2.5).scalars()["validation_loss"] == 2.5
    assert (scalars["layers_skipped"], scalars["layers_skipped_for_visual"]) == (2.0, 2.0)
    assert scalars["flops_saved"] == pytest.approx(0.25)
    assert scalars["dropped_step"] == 0.0
    assert replace(FIGURES, dropped_step=True).scalars()["dropped_step"] == 1.0
