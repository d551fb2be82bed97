"""Shows that the language model's tensors convert to Hugging Face's names and back, bitwise."""

import pytest
import torch

from megatron_sts.config import LanguageArchitecture
from megatron_sts.errors import ConversionError
from megatron_sts.hf.llama import (
    language_from_hf,
    language_shapes,
    language_to_hf,
    merge_gate_up,
    merge_qkv,
    split_gate_up,
    split_qkv,
)


def language(groups: int = 2, tied: bool = False) -> LanguageArchitecture:
    return LanguageArchitecture(
        family="llama",
        layers=3,
        hidden_size=16,
        ffn_hidden_size=20,
        attention_heads=4,
        query_groups=groups,
        vocabulary_size=10,
        vocabulary_padding=8,
        tied_embeddings=tied,
    )


def random_tensors(sizes: LanguageArchitecture) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {key: torch.randn(shape, generator=generator) for key, shape in language_shapes(sizes).items()}


def test_a_group_is_its_query_heads_then_its_key_and_value() -> None:
    # 4 query heads in 2 groups, head size 1, hidden size 1: the rows are q0 q1 k0 v0 q2 q3 k1 v1.
    joined = torch.tensor([[0.0], [1.0], [20.0], [30.0], [2.0], [3.0], [21.0], [31.0]])
    query, key, value = split_qkv(joined, heads=4, groups=2)
    assert query.flatten().tolist() == [0, 1, 2, 3]
    assert key.flatten().tolist() == [20, 21]
    assert value.flatten().tolist() == [30, 31]
    assert torch.equal(merge_qkv(query, key, value, heads=4, groups=2), joined)


def test_the_gate_stands_before_the_up_projection() -> None:
    gate, up = split_gate_up(torch.tensor([[1.0], [2.0], [3.0], [4.0]]))
    assert gate.flatten().tolist() == [1, 2]
    assert up.flatten().tolist() == [3, 4]
    assert merge_gate_up(gate, up).flatten().tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("tied", [False, True])
def test_there_and_back_is_bitwise_the_same(groups: int, tied: bool) -> None:
    sizes = language(groups, tied)
    converted = language_to_hf(random_tensors(sizes), sizes)
    again = language_to_hf(language_from_hf(converted, sizes), sizes)
    assert converted.keys() == again.keys()
    assert all(torch.equal(converted[name], again[name]) for name in converted)
    assert ("lm_head.weight" in converted) is not tied


def test_back_and_there_is_bitwise_the_same_but_for_the_padding() -> None:
    sizes = language()
    tensors = random_tensors(sizes)
    again = language_from_hf(language_to_hf(tensors, sizes), sizes)
    assert again.keys() == tensors.keys()
    for key, tensor in tensors.items():
        if key in ("embedding.word_embeddings.weight", "output_layer.weight"):
            assert torch.equal(again[key][:10], tensor[:10])
            assert torch.equal(again[key][10:], torch.zeros(6, 16))
        else:
            assert torch.equal(again[key], tensor)


def test_a_head_beside_tied_embeddings_is_dropped() -> None:
    sizes = language(tied=True)
    converted = language_to_hf(random_tensors(sizes), sizes)
    converted["lm_head.weight"] = converted["model.embed_tokens.weight"]
    assert "output_layer.weight" not in language_from_hf(converted, sizes)


def test_missing_unexpected_and_misshapen_tensors_are_all_named() -> None:
    sizes = language()
    tensors = random_tensors(sizes)
    del tensors["decoder.final_layernorm.weight"]
    tensors["decoder.layers.self_attention.linear_qkv.bias"] = torch.zeros(3, 32)
    tensors["output_layer.weight"] = torch.zeros(8, 16)
    with pytest.raises(ConversionError) as error:
        language_to_hf(tensors, sizes)
    message = str(error.value)
    assert "missing: decoder.final_layernorm.weight" in message
    assert "unexpected: decoder.layers.self_attention.linear_qkv.bias" in message
    assert "output_layer.weight has shape [8, 16] instead of [16, 16]" in message
