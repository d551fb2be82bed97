"""Shows that a parallel block communicates half as often as a sequential layer, and marks its parameters as that one.

Layouts and losses are for tests/parallel/test_families.py.
"""

from typing import Any

import torch

from megatron_sts.config import Recipe
from megatron_sts.model.build import build_chunks
from megatron_sts.parallel.groups import group_collection, start_groups
from megatron_sts.parallel.traffic import count_traffic
from megatron_sts.sts import StepPlan
from tests.ranks import run_ranks
from tests.tiny import tiny_recipe

LENGTH, HIDDEN = 40, 32
# Of 40 positions 9 hold text, of which the first rank has 3.
TEXT = (((0, 3), (30, 36)),)
PHI = {"family": "phi", "query_groups": 4, "partial_rotary_factor": 0.5}
RECIPES: dict[str, dict[str, Any]] = {
    "phi": {"model__architecture__language": PHI, "parallel": {"tensor": 2, "sequence_parallel": True}},
    "phi, whole": {"model__architecture__language": PHI, "parallel": {"tensor": 2}},
    "llama": {"parallel": {"tensor": 2, "sequence_parallel": True}},
}


def _observed(recipes: list[Recipe]) -> list[dict[str, Any]]:
    """Of the first layer: what it sends forward and backward, whole and for text alone; its parameters' marks."""
    return [_of_layer(recipe) for recipe in recipes]


def _of_layer(recipe: Recipe) -> dict[str, Any]:
    start_groups(recipe.parallel, recipe.seed)
    (model,) = build_chunks(recipe, group_collection(), draw_weights=True)
    layer = model.language.decoder.layers[0]
    rotary = model.language.rotary_pos_emb(LENGTH)
    rows = LENGTH // (2 if recipe.parallel.sequence_parallel else 1)
    found: dict[str, Any] = {}
    for name, visual in (("whole", frozenset()), ("text", frozenset({0}))):
        model.set_plan(StepPlan(0, frozenset(), (0,), 1, layers_skipped_for_visual=visual))
        hidden = torch.randn(rows, 1, HIDDEN, requires_grad=True)
        text = model.text_rows(TEXT, (LENGTH,))
        layer.zero_grad(set_to_none=True)
        with count_traffic() as sent:
            output, _ = layer(hidden_states=hidden, attention_mask=None, rotary_pos_emb=rotary, attention_bias=text)
            output.sum().backward()
        assert all(parameter.grad is not None for parameter in layer.parameters())
        found[name] = dict(sent)
    found["marks"] = {
        name: (
            getattr(parameter, "tensor_model_parallel", False),
            getattr(parameter, "sequence_parallel", False),
            getattr(parameter, "allreduce", True),
        )
        for name, parameter in layer.named_parameters()
    }
    return found


def test_attention_and_mlp_share_one_gather_and_one_reduce_scatter(tmp_path):
    recipes = [tiny_recipe(tmp_path, **changes) for changes in RECIPES.values()]
    for by_recipe in run_ranks(2, _observed, recipes):
        phi, whole, llama = by_recipe
        # Of each exchange over two ranks a rank sends half of the rows.
        half = LENGTH // 2 * HIDDEN * 4
        # One gather and one reduce-scatter forward; each is the other one's backward pass.
        assert phi["whole"] == {"all_gather_into_tensor": 2 * half, "reduce_scatter_tensor": 2 * half}
        # Every rank has all rows, and nothing more is moved to leave the MLP out for some.
        assert phi["text"] == phi["whole"]
        # Attention and MLP each gather forward, backward, and once more for the gradient of their first weight.
        assert llama["whole"] == {"all_gather_into_tensor": 6 * half, "reduce_scatter_tensor": 4 * half}
        # One sum forward and one backward.
        assert whole["whole"] == whole["text"] == {"all_reduce": 2 * LENGTH * HIDDEN * 4}
        cut, whole_on_each = (True, False, True), (False, True, True)
        assert phi["marks"] == {
            "input_layernorm.weight": whole_on_each,
            "input_layernorm.bias": whole_on_each,
            "self_attention.linear_proj.weight": cut,
            "self_attention.linear_proj.bias": whole_on_each,
            "self_attention.linear_qkv.weight": cut,
            "self_attention.linear_qkv.bias": cut,
            "mlp.linear_fc1.weight": cut,
            "mlp.linear_fc1.bias": cut,
            "mlp.linear_fc2.weight": cut,
            "mlp.linear_fc2.bias": whole_on_each,
        }
