"""Shows that tensor-parallel ranks work on even shares of the text, that little moves for it, and what pads a share.

Layouts and losses are for tests/parallel/test_skipping_for_visual.py.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from megatron_sts.config import Recipe
from megatron_sts.model.build import build_chunks
from megatron_sts.model.text_rows import TextRows, text_rows
from megatron_sts.parallel.groups import group_collection, start_groups
from megatron_sts.parallel.traffic import count_traffic
from megatron_sts.sts import StepPlan
from tests.ranks import run_ranks
from tests.tiny import tiny_recipe

TENSOR, SEQUENCE = {"tensor": 2}, {"tensor": 2, "sequence_parallel": True}
LENGTH = 916
# As in LLaVA: 35 positions before the image, 576 of the image, the rest behind it; with one position of padding.
LLAVA = (((0, 35), (611, 915)),)
HIDDEN = 32


@dataclass
class _Settings:
    sequence_parallel: bool
    fp8: str | None = None
    fp8_recipe: str = "tensorwise"


def _placed(recipe: Recipe, fp8: str | None, text: Any) -> tuple[list[int], int, Any, Any]:
    start_groups(recipe.parallel, recipe.seed)
    rows = text_rows(text, (8,), _Settings(recipe.parallel.sequence_parallel, fp8), group_collection())
    return rows.own.tolist(), rows.worked, rows.sent, rows.received


def test_places_by_hand(tmp_path):
    # Rows of a micro-batch lie side by side at each position: [s, b].
    text = [((0, 1), (5, 8)), ((6, 8),)]
    everything = [0, 10, 12, 13, 14, 15]
    plain = tiny_recipe(tmp_path, parallel=TENSOR)
    assert run_ranks(2, _placed, plain, None, text) == [(everything, 6, None, None)] * 2
    sequence = tiny_recipe(tmp_path, parallel=SEQUENCE)
    # Of six rows the first rank has one; the second keeps three and gives it two.
    assert run_ranks(2, _placed, sequence, None, text) == [
        ([0], 3, [1, 0], [1, 2]),
        ([2, 4, 5, 6, 7], 3, [2, 3], [0, 3]),
    ]
    assert run_ranks(2, _placed, sequence, "hybrid", text)[0][1] == 16
    # Without text there is still a row to work on.
    assert run_ranks(2, _placed, sequence, None, [(), ()]) == [([], 1, [0, 0], [0, 0])] * 2


def test_the_function_sees_text_alone_and_zeros_where_a_share_is_short():
    seen: list[Tensor] = []

    def function(rows: Tensor) -> Tensor:
        seen.append(rows.detach())
        return rows * 10

    hidden = torch.arange(1.0, 13.0).reshape(3, 2, 2).requires_grad_()
    done = TextRows(torch.tensor([1, 4]), 3).apply(function, hidden)
    assert seen[0].tolist() == [[[3, 4]], [[9, 10]], [[0, 0]]]
    assert done.tolist() == [[[1, 2], [30, 40]], [[5, 6], [7, 8]], [[90, 100], [11, 12]]]
    done.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad[..., 0].tolist() == [[1, 10], [1, 1], [10, 1]]


def _moved(recipe: Recipe) -> dict[str, tuple[int, bool]]:
    """Bytes that the MLP of a layer moves for one micro-batch, and whether all its weights have a gradient."""
    start_groups(recipe.parallel, recipe.seed)
    (model,) = build_chunks(recipe, group_collection(), draw_weights=True)
    found = {}
    for name, text in (("dense", None), ("llava", LLAVA), ("no text", ((),))):
        visual = frozenset() if text is None else frozenset({0})
        model.set_plan(StepPlan(0, frozenset(), (0,), 1, layers_skipped_for_visual=visual))
        layer = model.language.decoder.layers[0]
        rows = None if text is None else model.text_rows(text, (LENGTH,))
        hidden = torch.randn(LENGTH // 2, 1, HIDDEN, requires_grad=True)
        layer.zero_grad(set_to_none=True)
        with count_traffic() as sent:
            output = layer._forward_mlp(hidden) if rows is None else rows.apply(layer._forward_mlp, hidden)
            output.sum().backward()
        mlp = [*layer.mlp.parameters(), *layer.pre_mlp_layernorm.parameters()]
        found[name] = sum(sent.values()), all(parameter.grad is not None for parameter in mlp)
    return found


def test_bytes_are_those_of_the_text(tmp_path):
    by_rank = run_ranks(2, _moved, tiny_recipe(tmp_path, parallel=SEQUENCE))
    total = {name: sum(found[name][0] for found in by_rank) for name in by_rank[0]}
    row = HIDDEN * 4
    # A gather and a reduce-scatter forward, both again backward, and a gather for the gradient of the weights: in each
    # a rank sends the other one what is not its own.
    assert total["dense"] == 5 * LENGTH * row
    # 339 rows of text, of which the first rank has 35: 134 of its 169 come from the second and go back, twice.
    least = (5 * 339 + 4 * 134) * row
    assert least <= total["llava"] <= 1.1 * least
    assert total["llava"] < 0.5 * total["dense"]
    assert total["no text"] == 5 * 2 * row
    assert all(has_gradients for found in by_rank for _, has_gradients in found.values())
