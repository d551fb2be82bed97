"""Shows that the sizes that follow from an architecture are those worked out by hand."""

import pytest
from pydantic import ValidationError

from megatron_sts.config import LanguageArchitecture, VisionArchitecture
from megatron_sts.config.architecture import Architecture


def vision(**changes: object) -> dict[str, object]:
    sizes = {"image_size": 336, "patch_size": 14, "hidden_size": 1024, "layers": 24, "attention_heads": 16}
    return {"family": "clip", "ffn_hidden_size": 4096, **sizes, **changes}


def language(**changes: object) -> dict[str, object]:
    sizes = {"layers": 32, "hidden_size": 4096, "ffn_hidden_size": 11008, "attention_heads": 32}
    return {"family": "llama", "query_groups": 32, "vocabulary_size": 32001, **sizes, **changes}


@pytest.mark.parametrize(
    ("changes", "tokens"),
    [
        ({}, 576),
        ({"feature_select": "full"}, 577),
        ({"family": "siglip", "image_size": 384, "feature_select": "full"}, 729),
        ({"family": "siglip2", "image_size": 384, "patch_size": 16, "feature_select": "full"}, 576),
        ({"image_size": 83, "patch_size": 14}, 25),
        ({"family": "dinov2", "image_size": 224, "pretrained_image_size": 518}, 256),
    ],
)
def test_visual_tokens_count_patches_and_a_kept_class_token(changes: dict[str, object], tokens: int) -> None:
    architecture = Architecture.model_validate({"vision": vision(**changes), "language": language()})
    assert architecture.visual_tokens == tokens


@pytest.mark.parametrize(("size", "padding", "padded"), [(32001, 128, 32128), (32000, 128, 32000), (5, 4, 8)])
def test_vocabulary_is_padded_up_to_a_multiple(size: int, padding: int, padded: int) -> None:
    sizes = LanguageArchitecture.model_validate(language(vocabulary_size=size, vocabulary_padding=padding))
    assert sizes.padded_vocabulary_size == padded


def test_head_size_is_the_width_of_one_head() -> None:
    assert LanguageArchitecture.model_validate(language()).head_size == 128
    assert LanguageArchitecture.model_validate(language(attention_head_size=96)).head_size == 96


@pytest.mark.parametrize(("window", "longest"), [(None, 4096), (1024, 1024), (8192, 4096)])
def test_a_sequence_fits_the_positions_and_the_window(window: int | None, longest: int) -> None:
    sizes = LanguageArchitecture.model_validate(language(family="mistral", sliding_window=window))
    assert sizes.longest_sequence == longest


def test_sizes_cannot_be_changed_or_invented() -> None:
    tower = VisionArchitecture.model_validate(vision())
    with pytest.raises(ValidationError, match="frozen"):
        tower.layers = 3
    with pytest.raises(ValidationError, match="Extra inputs"):
        VisionArchitecture.model_validate(vision(depth=3))


def test_every_field_of_the_architecture_has_a_description() -> None:
    for model in (Architecture, VisionArchitecture, LanguageArchitecture):
        assert all(field.description for field in model.model_fields.values()), model
