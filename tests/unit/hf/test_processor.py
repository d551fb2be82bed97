"""Shows which tokenizers are taken, and that the processor counts visual tokens as the tower does."""

from pathlib import Path

import pytest
from PIL import Image
from transformers import AutoProcessor

from megatron_sts.data import TEMPLATES
from megatron_sts.errors import ConversionError, DataError
from megatron_sts.hf.export import generation_config
from megatron_sts.hf.processor import build_processor, load_tokenizer, save_processor
from tests.unit.hf.tiny_llava import architecture, make_recipe, make_tokenizer


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(tokenizer_directory: Path) -> None:
    count = len(make_tokenizer())
    load_tokenizer(tokenizer_directory, count)
    with pytest.raises(ConversionError, match=f"has {count} tokens.*vocabulary_size {count - 1}"):
        load_tokenizer(tokenizer_directory, count - 1)


def test_a_tokenizer_without_the_image_token_is_refused(tmp_path: Path) -> None:
    make_tokenizer(image_token=False).save_pretrained(tmp_path)
    with pytest.raises(DataError, match="<image>"):
        load_tokenizer(tmp_path, 40)


def test_a_directory_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="--tokenizer"):
        load_tokenizer(tmp_path, 40)


def test_padding_is_on_the_left_and_has_a_token(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path, 40)
    assert (loaded.padding_side, loaded.pad_token) == ("left", "</s>")


@pytest.mark.parametrize(
    ("family", "select", "tokens"),
    [("clip", "default", 4), ("clip", "full", 5), ("siglip", "full", 4), ("dinov2", "default", 4)],
)
def test_a_picture_becomes_as_many_tokens_as_the_tower_yields(family: str, select: str, tokens: int) -> None:
    sizes = architecture(family)
    sizes = sizes.model_copy(
        update={"vision": sizes.vision.model_copy(update={"feature_select": select, "feature_layer": -1})}
    )
    assert sizes.visual_tokens == tokens
    stages = make_recipe(sizes, None, None).stages
    processor = build_processor(make_tokenizer(), sizes, None, stages)
    batch = processor(text="USER: <image> yes", images=Image.new("RGB", (50, 30)), return_tensors="pt")
    assert (batch["input_ids"] == processor.image_token_id).sum() == tokens
    assert batch["pixel_values"].shape == (1, 3, 28, 28)


@pytest.mark.parametrize("family", ["clip", "siglip", "dinov2"])
def test_a_model_trained_on_padded_pictures_pads_at_inference(family: str, tmp_path: Path) -> None:
    sizes = architecture(family)
    (stage,) = make_recipe(sizes, None, None).stages[-1:]
    padded = stage.model_copy(update={"data": stage.data.model_copy(update={"image_aspect_ratio": "pad"})})
    picture = Image.new("RGB", (60, 20), (255, 255, 255))
    for stages, corner_is_mean in (([stage], False), ([padded], True)):
        save_processor(build_processor(make_tokenizer(), sizes, None, stages), tmp_path)
        loaded = AutoProcessor.from_pretrained(tmp_path, backend="pil", local_files_only=True)
        pixels = loaded.image_processor(picture, return_tensors="pt")["pixel_values"][0]
        # Normalization makes the mean colour, rounded to a 255th, zero.
        assert (pixels[:, 0, 0].abs().max() < 0.02) == corner_is_mean


def test_generation_ends_at_the_templates_end_of_an_answer() -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<|im_end|>"], special_tokens=True)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert generation_config(tokenizer, TEMPLATES["chatml"]).eos_token_id == [tokenizer.eos_token_id, end]
    for template in (TEMPLATES["vicuna_v1"], TEMPLATES["plain"], None):
        assert generation_config(tokenizer, template).eos_token_id == tokenizer.eos_token_id
