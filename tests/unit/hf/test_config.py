"""Shows that an exported configuration says what the architecture and the vision encoder's directory say."""

import json
from pathlib import Path

import pytest
import torch
from transformers import CLIPVisionConfig

from megatron_sts.config import VisionArchitecture
from megatron_sts.errors import ConversionError
from megatron_sts.hf.config import llava_config, vision_config
from tests.unit.hf.tiny_llava import architecture, make_tokenizer


def test_every_size_of_the_architecture_arrives() -> None:
    tokenizer = make_tokenizer()
    config = llava_config(architecture("siglip", tied=True), None, tokenizer, torch.bfloat16)
    text = config.text_config
    assert (text.num_hidden_layers, text.hidden_size, text.intermediate_size) == (3, 32, 48)
    assert (text.num_attention_heads, text.num_key_value_heads, text.head_dim) == (4, 2, 8)
    assert (text.vocab_size, text.max_position_embeddings, text.rms_norm_eps) == (40, 128, 1e-5)
    assert text.rope_parameters["rope_theta"] == 500.0
    assert config.to_dict()["text_config"]["rope_theta"] == 500.0
    assert config.tie_word_embeddings
    assert text.tie_word_embeddings
    assert (config.vision_feature_layer, config.vision_feature_select_strategy) == (-1, "full")
    assert (config.image_seq_length, config.image_token_index) == (4, len(tokenizer) - 1)
    assert config.dtype == torch.bfloat16


def test_siglip_has_no_pooling_head() -> None:
    assert vision_config(architecture("siglip").vision, None).vision_use_head is False


def test_a_directory_adds_what_the_architecture_does_not_say(clip_directory: Path) -> None:
    config = vision_config(architecture("clip").vision, clip_directory)
    assert isinstance(config, CLIPVisionConfig)
    assert (config.hidden_act, config.layer_norm_eps) == ("gelu", 1e-3)


def test_a_directory_with_other_sizes_is_refused(clip_directory: Path) -> None:
    values = architecture("clip").vision.model_dump() | {"hidden_size": 48, "layers": 4}
    with pytest.raises(ConversionError) as error:
        vision_config(VisionArchitecture(**values), clip_directory)
    assert "hidden_size is 24 instead of 48, num_hidden_layers is 3 instead of 4" in str(error.value)
    assert "--vision" in str(error.value)


def test_a_directory_without_a_usable_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=r"config.json cannot be used.*--vision"):
        vision_config(architecture("clip").vision, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ConversionError, match="it is a llama model"):
        vision_config(architecture("siglip").vision, tmp_path)
