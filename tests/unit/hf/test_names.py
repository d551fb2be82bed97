"""Shows how tensors are called in files and in a checkpoint, and which belong to a model."""

import pytest

from megatron_sts.hf.names import checkpoint_vision_name, is_harmless, is_pooling_head, part_of, runs


@pytest.mark.parametrize(
    ("in_file", "expected"),
    [
        ("vision_tower.vision_model.post_layernorm.bias", ("vision", "post_layernorm.bias")),
        ("vision_tower.post_layernorm.bias", ("vision", "post_layernorm.bias")),
        ("model.vision_tower.post_layernorm.bias", ("vision", "post_layernorm.bias")),
        ("multi_modal_projector.linear_1.bias", ("projector", "linear_1.bias")),
        ("model.multi_modal_projector.linear_1.bias", ("projector", "linear_1.bias")),
        ("language_model.model.norm.weight", ("language", "model.norm.weight")),
        ("model.language_model.norm.weight", ("language", "model.norm.weight")),
        ("language_model.lm_head.weight", ("language", "lm_head.weight")),
        ("lm_head.weight", ("language", "lm_head.weight")),
        ("image_newline", None),
    ],
)
def test_files_of_both_layouts_are_read(in_file: str, expected: tuple[str, str] | None) -> None:
    assert part_of(in_file) == expected


@pytest.mark.parametrize("prefix", ["vision.", "vision.vision_model."])
def test_vision_names_are_read_with_and_without_the_prefix_of_older_releases(prefix: str) -> None:
    assert checkpoint_vision_name(f"{prefix}embeddings.patch_embedding.bias") == "embeddings.patch_embedding.bias"


@pytest.mark.parametrize(
    ("name", "harmless"),
    [
        ("model.layers.3.self_attn.rotary_emb.inv_freq", True),
        ("vision_tower.vision_model.embeddings.position_ids", True),
        ("text_model.encoder.layers.0.mlp.fc1.bias", True),
        ("logit_scale", True),
        ("vision_model.embeddings.position_embedding.weight", False),
        ("model.norm.weight", False),
    ],
)
def test_only_what_is_computed_or_of_another_model_may_be_left_out(name: str, harmless: bool) -> None:
    assert is_harmless(name) is harmless


def test_the_pooling_head_is_told_from_attention_heads() -> None:
    assert is_pooling_head("head.attention.in_proj_weight")
    assert not is_pooling_head("encoder.layers.0.self_attn.q_proj.weight")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("embeddings.class_embedding", True),
        ("encoder.layers.21.mlp.fc1.weight", True),
        ("encoder.layers.22.mlp.fc1.weight", False),
        ("post_layernorm.weight", False),
    ],
)
def test_layers_after_the_feature_layer_and_the_last_norm_never_run(name: str, expected: bool) -> None:
    assert runs(name, used_layers=22) is expected
