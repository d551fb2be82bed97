"""Shows that a skipped layer is the identity, forward and backward, and that a chunk never hands on its input."""

import math
from dataclasses import replace

import pytest
import torch
from megatron.core.transformer.spec_utils import build_module
from torch import Tensor

from megatron_sts.config import Recipe
from megatron_sts.model.build import build_chunks
from megatron_sts.model.mllm import MultimodalModel
from megatron_sts.model.skippable_layer import hand_down_plan
from megatron_sts.model.specs import block_spec
from megatron_sts.parallel.groups import group_collection, start_groups
from megatron_sts.sts import StepPlan
from tests.ranks import run_ranks
from tests.tiny import tiny_recipe

LAYERS = 4


def _model(recipe: Recipe) -> MultimodalModel:
    start_groups(recipe.parallel, recipe.seed)
    (model,) = build_chunks(recipe, group_collection(), draw_weights=True)
    return model


def _plan(*skipped: int) -> StepPlan:
    return StepPlan(0, frozenset(skipped), tuple(range(16)), 16)


def _run(model: MultimodalModel, hidden: Tensor) -> Tensor:
    """Hidden states [s, b, h] -> logits [b, s, V]."""
    return model.language(input_ids=None, position_ids=None, attention_mask=None, decoder_input=hidden)


def _single_layer(recipe: Recipe) -> None:
    layers = _model(recipe).language.decoder.layers
    hidden = torch.randn(6, 2, 32, requires_grad=True)
    hand_down_plan(layers, _plan(1))
    assert [layer.skipped for layer in layers] == [False, True, False, False]
    context = torch.randn(1)
    output, passed = layers[1](hidden_states=hidden, attention_mask=None, context=context)
    assert output is hidden
    assert passed is context
    positional, _ = layers[1](hidden, None)
    assert positional is hidden
    # The next step runs it again.
    hand_down_plan(layers, _plan())
    ran, _ = layers[1](hidden_states=hidden, attention_mask=None)
    assert not torch.equal(ran, hidden)


def test_skipped_layer_hands_on_its_input(tmp_path):
    run_ranks(1, _single_layer, tiny_recipe(tmp_path))


def _among_others(recipe: Recipe) -> None:
    model = _model(recipe)
    layers = model.language.decoder.layers
    hidden = torch.randn(6, 2, 32, requires_grad=True)
    model.set_plan(_plan())
    dense = _run(model, hidden)
    model.set_plan(_plan(1, 2))
    for number in (1, 2):
        with torch.no_grad():
            for parameter in layers[number].parameters():
                parameter.fill_(math.nan)
    sparse = _run(model, hidden)
    sparse.square().sum().backward()
    gradient = hidden.grad.clone()

    # The same without the two layers at all.
    kept = [layers[0], layers[3]]
    model.language.decoder.layers = torch.nn.ModuleList(kept)
    hidden.grad = None
    shallow = _run(model, hidden)
    shallow.square().sum().backward()
    assert torch.equal(sparse, shallow)
    assert torch.equal(gradient, hidden.grad)
    assert gradient.isfinite().all()
    assert not torch.allclose(sparse, dense)
    assert all(parameter.grad is None for number in (1, 2) for parameter in layers[number].parameters())
    assert all(parameter.grad is not None for layer in kept for parameter in layer.parameters())


def test_skipped_layers_take_no_part_in_forward_and_backward(tmp_path):
    run_ranks(1, _among_others, tiny_recipe(tmp_path))


def _whole_chunk(recipe: Recipe) -> None:
    model = _model(recipe)
    decoder = model.language.decoder
    hidden = torch.randn(6, 2, 32, requires_grad=True)
    hand_down_plan(decoder.layers, _plan(*range(LAYERS)))
    output = hidden
    for layer in decoder.layers:
        output, _ = layer(hidden_states=output, attention_mask=None)
    assert torch.equal(output, hidden)
    assert output is not hidden
    assert output.data_ptr() != hidden.data_ptr()
    weights = torch.randn_like(output)
    (output * weights).sum().backward()
    assert torch.equal(hidden.grad, weights)


def test_chunk_that_skips_all_its_layers_returns_a_tensor_of_its_own(tmp_path):
    run_ranks(1, _whole_chunk, tiny_recipe(tmp_path))


def _skipped_on_rank(recipe: Recipe) -> list[tuple[list[bool], list[bool]]]:
    start_groups(recipe.parallel, recipe.seed)
    chunks = build_chunks(recipe, group_collection(), draw_weights=False)
    for chunk in chunks:
        hand_down_plan(chunk.language.decoder.layers, _plan(0, 1, 3))
    found = [chunk.language.decoder.layers for chunk in chunks]
    return [([layer.skipped for layer in layers], [layer.ends_chunk for layer in layers]) for layers in found]


def test_plan_counts_layers_over_all_stages(tmp_path):
    recipe = tiny_recipe(tmp_path, parallel={"pipeline": 2})
    assert run_ranks(2, _skipped_on_rank, recipe) == [
        [([True, True], [False, True])],
        [([False, True], [False, True])],
    ]
    interleaved = tiny_recipe(tmp_path, parallel={"pipeline": 2, "virtual_pipeline": 2})
    # Rank 0 holds layers 0 and 2, rank 1 layers 1 and 3.
    assert run_ranks(2, _skipped_on_rank, interleaved) == [
        [([True], [True]), ([False], [True])],
        [([True], [True]), ([True], [True])],
    ]


def _with_own_fusion(recipe: Recipe) -> None:
    config, groups = _model(recipe).config, group_collection()
    spec = block_spec(config, groups, None).layer_specs[0]
    plain = build_module(spec, config=config, layer_number=1, pg_collection=groups)
    assert plain.config is config
    # Without Apex megatron-core's own linear layers refuse, which shows that they were asked.
    with pytest.raises(RuntimeError, match="gradient_accumulation_fusion"):
        build_module(
            replace(spec, params={"fuses_gradients": True}), config=config, layer_number=1, pg_collection=groups
        )
    assert not config.gradient_accumulation_fusion


def test_a_layer_may_fuse_gradients_where_the_rest_of_the_model_cannot(tmp_path):
    run_ranks(1, _with_own_fusion, tiny_recipe(tmp_path))
