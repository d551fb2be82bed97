"""Shows how tensors are called in a checkpoint, in a file and in memory, and which belong to a model."""

import pytest

from megatron_sts.hf.names import file_name, is_unused, vision_name


@pytest.mark.parametrize(
    ("in_memory", "in_file"),
    [
        (
            "model.vision_tower.post_layernorm.bias",
            "vision_tower.vision_model.post_layernorm.bias",
        ),
        ("model.multi_modal_projector.linear_1.bias", "multi_modal_projector.linear_1.bias"),
        ("model.language_model.norm.weight", "language_model.model.norm.weight"),
        ("lm_head.weight", "language_model.lm_head.weight"),
    ],
)
def test_file_names_are_those_of_older_llava_checkpoints(in_memory: str, in_file: str) -> None:
    assert file_name(in_memory) == in_file


def test_a_name_outside_the_model_is_our_bug() -> None:
    with pytest.raises(AssertionError, match="audio_tower"):
        file_name("model.audio_tower.weight")


@pytest.mark.parametrize("prefix", ["vision.", "vision.vision_model."])
def test_vision_names_are_read_with_and_without_the_prefix_of_older_releases(prefix: str) -> None:
    assert vision_name(f"{prefix}embeddings.patch_embedding.bias") == "embeddings.patch_embedding.bias"


@pytest.mark.parametrize(
    ("key", "unused"),
    [
        ("vision.head.probe", True),
        ("vision.vision_model.head.probe", True),
        ("vision.embeddings.position_ids", True),
        ("vision.embeddings.position_embedding.weight", False),
        ("head.probe", False),
    ],
)
def test_only_what_a_llava_model_never_runs_is_unused(key: str, unused: bool) -> None:
    assert is_unused(key) is unused
