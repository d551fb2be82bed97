"""Runs a stage on the ranks of a test and brings home what it did, put together over the layout."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory

from megatron_sts.config import Recipe
from megatron_sts.model.mllm import MultimodalModel
from megatron_sts.parallel.groups import Place, start_groups
from megatron_sts.train.loop import prepare_stage
from megatron_sts.train.resume import Start
from megatron_sts.train.stage_data import StageData
from megatron_sts.train.step_input import StepInput
from tests.ranks import run_ranks


@dataclass
class Observation:
    """Losses, gradient norms, divergences from a teacher and layers skipped by step; gradients of the first and weights
    after the last, by key."""

    losses: list[float]
    grad_norms: list[float]
    distill_losses: list[float | None]
    skipped: list[list[int]]
    skipped_for_visual: list[list[int]]
    gradients: dict[str, np.ndarray]
    weights: dict[str, np.ndarray]


Piece = tuple[str, tuple[int, ...], tuple[int, ...], int, np.ndarray]


def observe(recipe: Recipe, stage: str, world_size: int, steps: int = 3) -> Observation:
    """Train the first steps of a stage from fresh weights on `world_size` ranks."""
    return observe_all([recipe], stage, world_size, steps)[0]


def observe_all(recipes: list[Recipe], stage: str, world_size: int, steps: int = 3) -> list[Observation]:
    """`observe` for several recipes, one after another on the same ranks."""
    return put_together(run_ranks(world_size, observe_rank_all, recipes, stage, steps))


def put_together(ranks: list[list[dict[str, Any]]]) -> list[Observation]:
    """What `observe_rank_all` found on each rank, put together over the layout of each recipe."""
    return [_observation(list(of_recipe)) for of_recipe in zip(*ranks, strict=True)]


def _observation(ranks: list[dict[str, Any]]) -> Observation:
    first = ranks[0]
    for other in ranks[1:]:
        assert other["losses"] == first["losses"] and other["skipped"] == first["skipped"]
    pieces = {kind: [piece for rank in ranks for piece in rank[kind]] for kind in ("gradients", "weights")}
    return Observation(
        first["losses"],
        first["grad_norms"],
        first["distill_losses"],
        first["skipped"],
        first["skipped_for_visual"],
        whole_tensors(pieces["gradients"]),
        whole_tensors(pieces["weights"]),
    )


def assert_same(found: Observation, expected: Observation) -> None:
    """The same up to the rounding of fp32 sums in another order (see test_layouts.py)."""
    assert found.skipped == expected.skipped
    assert found.skipped_for_visual == expected.skipped_for_visual
    np.testing.assert_allclose(found.losses, expected.losses, rtol=2e-6)
    for one, other in zip(found.distill_losses, expected.distill_losses, strict=True):
        # A difference of two logarithms that nearly cancel.
        assert (one is None) == (other is None) and (one is None or one == pytest.approx(other, rel=1e-4, abs=1e-7))
    np.testing.assert_allclose(found.grad_norms, expected.grad_norms, rtol=2e-5)
    for kind in ("gradients", "weights"):
        one, other = getattr(found, kind), getattr(expected, kind)
        if kind == "weights" or one:
            assert one.keys() == other.keys()
        # Some gradients are zero but for rounding: a bias on keys shifts all scores of a query alike.
        floor = 1e-3 * max((np.abs(values).max() for values in other.values()), default=0.0)
        for key in one:
            tolerance = 2e-5 * max(np.abs(other[key]).max(), floor)
            np.testing.assert_allclose(one[key], other[key], rtol=0, atol=tolerance, err_msg=f"{kind} {key}")


def observe_rank_all(recipes: list[Recipe], stage_name: str, steps: int) -> list[dict[str, Any]]:
    """This rank's part of `observe_all`."""
    return [_observe_rank(recipe, stage_name, steps) for recipe in recipes]


def _observe_rank(recipe: Recipe, stage_name: str, steps: int) -> dict[str, Any]:
    place = start_groups(recipe.parallel, recipe.seed)
    stage = recipe.stage(stage_name)
    data = StageData(recipe, stage)
    parts = prepare_stage(recipe, stage, data.total_steps, Start(None, 0), place)
    lists = ("losses", "grad_norms", "distill_losses", "skipped", "skipped_for_visual", "gradients")
    result: dict[str, Any] = {name: [] for name in lists}
    for given in step_inputs(data, place, steps):
        plan = given.plan
        if plan.step == 0 and not recipe.optimizer.distributed:
            # The distributed optimiser leaves each rank the sums of its own shard alone.
            parts.step.forward_backward(given)
            result["gradients"] = pieces_of(parts.chunks, gradients=True)
        done = parts.step.run(given)
        result["distill_losses"].append(done.distill_loss)
        result["losses"].append(done.loss)
        result["grad_norms"].append(done.grad_norm)
        result["skipped"].append(sorted(plan.skipped_layers))
        result["skipped_for_visual"].append(sorted(plan.layers_skipped_for_visual))
    parts.step.gather_weights()
    result["weights"] = pieces_of(parts.chunks, gradients=False)
    return result


def step_inputs(data: StageData, place: Place, steps: int) -> Iterator[StepInput]:
    """What a rank is given for the first steps of a stage."""
    return islice(data.inputs(place, 0), steps)


def fill(chunks: list[MultimodalModel], tensors: Mapping[str, torch.Tensor]) -> None:
    """Write whole tensors, by checkpoint key, into this rank's parts of them."""
    for part in _parts(chunks, gradients=False):
        with torch.no_grad():
            part.data.copy_(tensors[part.key][_place(part.global_offset, part.prepend_axis_num, part.data.shape)])


def pieces_of(chunks: list[MultimodalModel], gradients: bool) -> list[Piece]:
    """This rank's parts of every tensor: (key, whole shape, offset, stacked dimensions, values)."""
    return [
        (
            part.key,
            part.global_shape,
            part.global_offset,
            part.prepend_axis_num,
            part.data.detach().to("cpu", torch.float64).numpy().copy(),
        )
        for part in _parts(chunks, gradients)
    ]


def _parts(chunks: list[MultimodalModel], gradients: bool) -> Iterator[ShardedTensor]:
    for chunk in chunks:
        for value in nested_values(chunk.sharded_state_dict()):
            if not isinstance(value, ShardedTensor | ShardedTensorFactory):
                continue
            if gradients:
                if not hasattr(value.data, "main_grad"):
                    continue
                value.data = value.data.main_grad
            yield from nested_values(value.build()) if isinstance(value, ShardedTensorFactory) else [value]


def whole_tensors(pieces: list[Piece]) -> dict[str, np.ndarray]:
    """The tensors that the pieces of all ranks make up, by key."""
    whole: dict[str, np.ndarray] = {}
    for key, shape, offset, stacked, values in pieces:
        target = whole.setdefault(key, np.full(shape, np.nan))
        where = _place(offset, stacked, values.shape)
        held = target[where]
        # Replicas, and the two ends of a tied embedding, must agree wherever both hold a value.
        assert np.all(np.isnan(held) | np.isclose(held, values, rtol=1e-5, atol=1e-8)), f"replicas of {key} differ"
        target[where] = values
    assert not any(np.isnan(values).any() for values in whole.values())
    return whole


def _place(offset: tuple[int, ...], stacked: int, shape: Sequence[int]) -> tuple[Any, ...]:
    return (*offset[:stacked], *(slice(o, o + n) for o, n in zip(offset[stacked:], shape, strict=True)))
