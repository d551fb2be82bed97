"""Shows which tensors a language model of each family has, under both sets of names."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from megatron_sts.config import LanguageArchitecture
from megatron_sts.errors import ConversionError
from megatron_sts.hf.families import LANGUAGES
from megatron_sts.hf.language import check_tensors, hugging_face_shapes, megatron_shapes


def language(**changes: Any) -> LanguageArchitecture:
    sizes = {"layers": 2, "hidden_size": 16, "ffn_hidden_size": 20, "attention_heads": 4, "query_groups": 2}
    values = {"family": "llama", "vocabulary_size": 10, "vocabulary_padding": 8} | sizes | changes
    return LanguageArchitecture.model_validate(values)


@pytest.mark.parametrize("family", LANGUAGES)
@pytest.mark.parametrize("tied", [False, True])
def test_the_tensors_of_a_family_are_those_of_its_class_in_transformers(family: str, tied: bool) -> None:
    config = LANGUAGES[family].config(
        vocab_size=10,
        hidden_size=16,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=6,
        tie_word_embeddings=tied,
        pad_token_id=0,
    )
    with torch.device("meta"):
        state = AutoModelForCausalLM.from_config(config).state_dict()
    expected = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if tied:
        del expected["lm_head.weight"]
    assert hugging_face_shapes(language(family=family, attention_head_size=6, tied_embeddings=tied)) == expected


def test_megatron_core_stacks_layers_and_pads_the_vocabulary() -> None:
    shapes = megatron_shapes(language(family="qwen2"))
    assert shapes["embedding.word_embeddings.weight"] == (16, 16)
    assert shapes["output_layer.weight"] == (16, 16)
    assert shapes["decoder.layers.self_attention.linear_qkv.weight"] == (2, 32, 16)
    assert shapes["decoder.layers.self_attention.linear_qkv.bias"] == (2, 32)
    assert shapes["decoder.final_layernorm.weight"] == (16,)


def test_missing_unexpected_and_misshapen_tensors_are_all_named() -> None:
    expected = {"a": (2, 3), "b": (4,), "c": (1,)}
    with pytest.raises(ConversionError) as error:
        check_tensors({"a": (3, 2), "c": (1,), "d": (5,)}, expected, "somewhere")
    message = str(error.value)
    assert message.startswith("somewhere: ")
    assert "missing: b" in message
    assert "unexpected: d" in message
    assert "a has shape [3, 2] instead of [2, 3]" in message
