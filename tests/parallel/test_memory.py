"""Shows that planned bytes are those of megatron-core's real buffers, on every rank, to the byte.

All sizes are multiples of 128, so that the distributed optimiser's buffers have no padding, which planning leaves out.
"""

import copy
from typing import Any

import pytest
import torch

from megatron_sts.config import Recipe
from megatron_sts.parallel.groups import start_groups
from megatron_sts.planning.memory import rank_bytes
from megatron_sts.train.loop import prepare_stage
from megatron_sts.train.resume import Start
from tests.ranks import run_ranks
from tests.tiny import ARCHITECTURE, tiny_recipe

SIZES = copy.deepcopy(ARCHITECTURE)
SIZES["vision"] |= {"hidden_size": 128, "ffn_hidden_size": 256, "layers": 3}
SIZES["language"] |= {"hidden_size": 128, "ffn_hidden_size": 256, "vocabulary_size": 128, "vocabulary_padding": 128}
TIED = copy.deepcopy(SIZES)
TIED["language"]["tied_embeddings"] = True
SIGLIP = copy.deepcopy(SIZES)
SIGLIP["vision"] |= {"family": "siglip", "feature_select": "full"}
DINOV2 = copy.deepcopy(SIZES)
DINOV2["vision"] |= {"family": "dinov2"}
QWEN2, QWEN3 = copy.deepcopy(SIZES), copy.deepcopy(SIZES)
QWEN2["language"]["family"] = "qwen2"
QWEN3["language"] |= {"family": "qwen3", "attention_head_size": 64}
EVERYTHING = {
    "tune__trains": ["projector", "language", "vision"],
    "tune__learning_rate": {"projector": 1e-3, "language": 1e-3, "vision": 1e-3},
}
DISTRIBUTED = {"optimizer": {"distributed": True}}
# By number of ranks: (stage of training, changes of the recipe).
CASES: dict[int, list[tuple[str, dict[str, Any]]]] = {
    2: [
        ("tune", {"parallel": {"pipeline": 2, "layers_per_stage": [1, 3]}}),
        ("align", {"precision": "bf16", "parallel": {"pipeline": 2}}),
        ("tune", {"model__architecture": TIED, "precision": "bf16", "parallel": {"pipeline": 2}}),
        ("tune", {"model__architecture": TIED, **DISTRIBUTED}),
        ("tune", {"precision": "bf16", "parallel": {"grad_reduce_dtype": "bf16"}, **DISTRIBUTED}),
        ("tune", {"model__architecture": SIGLIP, "parallel": {"tensor": 2}, **EVERYTHING}),
        ("tune", {"model__architecture": DINOV2, "parallel": {"tensor": 2}, **EVERYTHING}),
        ("tune", {"optimizer": {"kind": "sgd"}}),
        ("tune", {"model__architecture": QWEN2, "parallel": {"tensor": 2}}),
        ("tune", {"model__architecture": QWEN3, "parallel": {"tensor": 2}}),
    ],
    4: [
        (
            "tune",
            {"precision": "bf16", "parallel": {"tensor": 2, "sequence_parallel": True}, **DISTRIBUTED, **EVERYTHING},
        ),
        ("tune", {"precision": "bf16", "parallel": {"pipeline": 2, "virtual_pipeline": 2}, **DISTRIBUTED}),
    ],
}


def _held(cases: list[tuple[str, Recipe]]) -> list[tuple[int, int, int, int]]:
    """(pipeline rank, bytes of weights, gradients and optimiser) of this rank, by case."""
    found = []
    for stage, recipe in cases:
        place = start_groups(recipe.parallel, recipe.seed)
        parts = prepare_stage(recipe, recipe.stage(stage), 1, Start(None, 0), place)
        weights = [parameter for chunk in parts.chunks for parameter in chunk.parameters()]
        gradients = [buffer.grad_data for ddp in parts.step._wrapped for buffer in ddp.buffers]
        optimizer = 0
        for inner in parts.optimizer.inner.chained_optimizers:
            base = inner.optimizer
            if base is None:
                continue
            stepped = [parameter for group in base.param_groups for parameter in group["params"]]
            # In bf16 the optimiser steps fp32 weights of its own, in fp32 those of the model.
            optimizer += sum(tensor.nbytes for tensor in stepped if tensor.dtype != weights[0].dtype)
            moments = [value for state in base.state.values() for value in state.values()]
            optimizer += sum(value.nbytes for value in moments if torch.is_tensor(value) and value.ndim)
        found.append(
            (
                place.pipeline_rank,
                sum(parameter.nbytes for parameter in weights),
                sum(gradient.nbytes for gradient in gradients),
                optimizer,
            )
        )
    return found


@pytest.mark.parametrize("ranks", list(CASES))
def test_planned_bytes_are_those_of_the_buffers(tmp_path, ranks):
    cases = [
        (stage, tiny_recipe(tmp_path, **{"model__architecture": SIZES, **changes})) for stage, changes in CASES[ranks]
    ]
    for rank, found in enumerate(run_ranks(ranks, _held, cases)):
        for (stage, recipe), (pipeline_rank, *held) in zip(cases, found, strict=True):
            data_parallel = ranks // (recipe.parallel.tensor * recipe.parallel.pipeline)
            planned = rank_bytes(recipe, recipe.stage(stage), pipeline_rank, data_parallel)
            assert held[0] == planned.parameters, (rank, stage, recipe.parallel)
            assert held[1] == planned.gradients, (rank, stage, recipe.parallel)
            assert held[2] == planned.optimizer, (rank, stage, recipe.parallel)
