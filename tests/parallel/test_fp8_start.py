"""Shows that the pass before the first step runs every layer of every rank, though the step skips some, and that
training goes on as if it had not been."""

import pytest

from megatron_sts.config import Recipe
from megatron_sts.model.build import build_chunks, freeze, wrap
from megatron_sts.parallel.groups import group_collection, start_groups
from megatron_sts.train.fp8_start import register_layers
from megatron_sts.train.optimizer import StageOptimizer
from megatron_sts.train.step import TrainStep
from tests.ranks import run_ranks
from tests.tiny import tiny_recipe


def _registered(recipe: Recipe) -> tuple[list[int], bool]:
    """(numbers of the layers that ran on this rank, whether weights and gradients are as before)."""
    place, stage = start_groups(recipe.parallel, recipe.seed), recipe.stage("tune")
    chunks = build_chunks(recipe, group_collection(), draw_weights=True)
    freeze(chunks, stage.trains)
    wrapped = wrap(chunks, recipe, group_collection())
    step = TrainStep(chunks, wrapped, StageOptimizer(recipe, stage, 4, chunks, wrapped), place)
    parameters = [parameter for chunk in chunks for parameter in chunk.parameters()]
    before = [parameter.detach().clone() for parameter in parameters]
    ran: list[int] = []
    for chunk in chunks:
        for layer in chunk.language.decoder.layers:
            layer.skipped = True
            layer.register_forward_hook(lambda layer, _inputs, _outputs: ran.append(layer.layer_number - 1))
    register_layers(recipe, stage, chunks, step, place)
    same = all(bool((old == new).all()) for old, new in zip(before, parameters, strict=True))
    gradients = [buffer.grad_data for ddp in wrapped for buffer in ddp.buffers]
    return ran, same and not any(bool(gradient.any()) for gradient in gradients)


@pytest.mark.parametrize(
    ("parallel", "layers_of_ranks"),
    [
        ({}, [[0, 1, 2, 3]]),
        ({"tensor": 2, "sequence_parallel": True}, [[0, 1, 2, 3]] * 2),
        # As many micro-batches as stages.
        ({"pipeline": 2}, [[0, 1, 0, 1], [2, 3, 2, 3]]),
        ({"pipeline": 2, "virtual_pipeline": 2}, [[0, 0, 2, 2], [1, 1, 3, 3]]),
    ],
)
def test_every_layer_runs_and_nothing_moves(tmp_path, parallel, layers_of_ranks):
    recipe = tiny_recipe(tmp_path, parallel=parallel, tune__skip={"alpha": 0.5})
    assert run_ranks(len(layers_of_ranks), _registered, recipe) == [(layers, True) for layers in layers_of_ranks]
