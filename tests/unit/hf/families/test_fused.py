"""Shows that fused tensors are taken apart and put together as both sides lay out their rows, biases too."""

from typing import Any

import pytest
import torch

from megatron_sts.config import LanguageArchitecture
from megatron_sts.hf.families.fused import (
    merge_gate_up,
    merge_qkv,
    merge_stacked_qkv,
    split_gate_up,
    split_qkv,
    split_stacked_qkv,
)


def language(**changes: Any) -> LanguageArchitecture:
    sizes = {"layers": 3, "hidden_size": 4, "ffn_hidden_size": 20, "attention_heads": 4, "query_groups": 2}
    return LanguageArchitecture.model_validate({"family": "llama", "vocabulary_size": 10} | sizes | changes)


# 4 query heads in 2 groups, head size 1: the rows are q0 q1 k0 v0 q2 q3 k1 v1.
JOINED = [0.0, 1.0, 20.0, 30.0, 2.0, 3.0, 21.0, 31.0]


@pytest.mark.parametrize("shape", [(8,), (8, 1)])
def test_a_group_is_its_query_heads_then_its_key_and_value(shape: tuple[int, ...]) -> None:
    joined = torch.tensor(JOINED).view(shape)
    query, key, value = split_qkv(joined, language())
    assert query.flatten().tolist() == [0, 1, 2, 3]
    assert key.flatten().tolist() == [20, 21]
    assert value.flatten().tolist() == [30, 31]
    assert query.dim() == joined.dim()
    assert torch.equal(merge_qkv((query, key, value), language()), joined)


def test_stacked_rows_are_all_queries_then_all_keys_then_all_values() -> None:
    (stacked,) = split_stacked_qkv(torch.tensor(JOINED)[:, None], language())
    assert stacked.flatten().tolist() == [0, 1, 2, 3, 20, 21, 30, 31]
    assert merge_stacked_qkv((stacked,), language()).flatten().tolist() == JOINED


def test_the_head_size_may_differ_from_the_width_over_the_heads() -> None:
    sizes = language(attention_head_size=3)
    joined = torch.arange(24.0)[:, None]
    query, key, value = split_qkv(joined, sizes)
    assert query.flatten().tolist() == [0, 1, 2, 3, 4, 5, 12, 13, 14, 15, 16, 17]
    assert key.flatten().tolist() == [6, 7, 8, 18, 19, 20]
    assert torch.equal(merge_qkv((query, key, value), sizes), joined)


def test_the_gate_stands_before_the_up_projection() -> None:
    gate, up = split_gate_up(torch.tensor([[1.0], [2.0], [3.0], [4.0]]), language())
    assert gate.flatten().tolist() == [1, 2]
    assert up.flatten().tolist() == [3, 4]
    assert merge_gate_up((gate, up), language()).flatten().tolist() == [1, 2, 3, 4]
