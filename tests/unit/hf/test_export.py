"""Shows that an export is an ordinary LLaVA model, bitwise the trained one, or is not written at all."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from megatron_sts.data import TEMPLATES
from megatron_sts.errors import ConversionError
from megatron_sts.hf import export_checkpoint, verify_export
from tests.unit.hf.tiny_llava import make_recipe, write_checkpoint


@pytest.mark.parametrize("family", ["clip", "siglip"])
@pytest.mark.parametrize("tied", [False, True])
def test_the_export_loads_as_the_same_model(make: Callable[..., Any], tmp_path: Path, family: str, tied: bool) -> None:
    made = make(family, tied)
    output = tmp_path / "deep" / "model"
    report = export_checkpoint(made.checkpoint, output)
    model, info = AutoModelForImageTextToText.from_pretrained(output, output_loading_info=True)
    assert not any(info.values()), info
    assert isinstance(model, LlavaForConditionalGeneration)

    expected, found = made.model.state_dict(), model.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert report.tensors == len(expected) - tied
    assert report.parameters == sum(parameter.numel() for parameter in made.model.parameters())
    assert (report.stage, report.step, report.dtype, report.dropped) == ("tune", 10, "float32", ())

    processor = AutoProcessor.from_pretrained(output)
    assert isinstance(processor, LlavaProcessor)
    inputs = processor(text="USER: <image> is it?", images=Image.new("RGB", (40, 30), "red"), return_tensors="pt")
    with torch.inference_mode():
        assert torch.equal(model(**inputs).logits, made.model(**inputs).logits)
    verify_export(output)
    assert [path.name for path in output.parent.iterdir()] == ["model"]


def test_the_file_has_the_names_of_older_llava_checkpoints(exported: Path) -> None:
    names = load_file(exported / "model.safetensors").keys()
    assert {name.split(".")[0] for name in names} == {
        "vision_tower",
        "multi_modal_projector",
        "language_model",
    }
    assert "vision_tower.vision_model.embeddings.patch_embedding.weight" in names
    assert "language_model.model.layers.2.self_attn.q_proj.weight" in names
    assert "language_model.lm_head.weight" in names


def test_the_files_are_as_readable_as_any_new_file(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "new").touch()
    expected = (tmp_path / "new").stat().st_mode
    assert {file.name for file in exported.iterdir() if file.stat().st_mode != expected} == set()


def test_the_chat_template_is_that_of_the_last_stage(exported: Path) -> None:
    processor = AutoProcessor.from_pretrained(exported)
    content = [{"type": "image"}, {"type": "text", "text": "What digit is it?"}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    assert prompt == TEMPLATES["vicuna_v1"].prompt("<image>\nWhat digit is it?")


def test_generation_knows_its_special_tokens_and_older_releases_find_the_image_processor(
    exported: Path,
) -> None:
    generation = json.loads((exported / "generation_config.json").read_text())
    assert [generation[f"{kind}_token_id"] for kind in ("bos", "eos", "pad")] == [1, 2, 3]
    assert json.loads((exported / "preprocessor_config.json").read_text())["size"] == {
        "height": 28,
        "width": 28,
    }


def test_the_model_card_states_the_recipe(exported: Path) -> None:
    card = (exported / "README.md").read_text()
    assert "stage `tune`, step 10" in card
    assert "| align | projector | `align.json` | plain | 10 steps | 8 | projector 0.001 |" in card
    assert "| compressed: strategy uniform, keep_ratio 0.5 |" in card
    assert "| skipped: tokens all, alpha 0.5, by depth, epsilon 0.25, protect_above 0.5, progress step, " in card


def test_weights_can_be_cast_and_split(make: Callable[..., Any], tmp_path: Path) -> None:
    made = make("siglip")
    output = tmp_path / "model"
    report = export_checkpoint(made.checkpoint, output, dtype=torch.bfloat16, largest_shard_bytes=20_000)
    assert len(report.weight_files) > 1
    assert report.dtype == "bfloat16"
    model = AutoModelForImageTextToText.from_pretrained(output)
    assert model.dtype == torch.bfloat16
    for name, tensor in made.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor.bfloat16())


def test_the_pooling_head_and_an_older_prefix_do_not_disturb(make: Callable[..., Any], tmp_path: Path) -> None:
    made = make("siglip")
    tensors = {key.replace("vision.", "vision.vision_model."): tensor for key, tensor in made.tensors.items()}
    tensors["vision.vision_model.head.probe"] = torch.zeros(1, 1, 24)
    checkpoint = write_checkpoint(tmp_path / "checkpoint", tensors, made.recipe)
    report = export_checkpoint(checkpoint, tmp_path / "model")
    assert report.dropped == ("vision.vision_model.head.probe",)
    verify_export(tmp_path / "model")


def test_a_checkpoint_with_other_tensors_is_refused_and_nothing_is_left(
    make: Callable[..., Any], tmp_path: Path
) -> None:
    made = make("siglip")
    tensors = dict(made.tensors)
    tensors["decoder.layers.self_attention.linear_qkv.bias"] = torch.zeros(3, 64)
    del tensors["projector.linear_2.bias"]
    checkpoint = write_checkpoint(tmp_path / "checkpoint", tensors, made.recipe)
    with pytest.raises(ConversionError) as error:
        export_checkpoint(checkpoint, tmp_path / "model")
    assert "unexpected: decoder.layers.self_attention.linear_qkv.bias" in str(error.value)
    assert "missing: projector.linear_2.bias" in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_nothing_is_left_when_writing_fails(
    make: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("megatron_sts.hf.shards.save_file", fail)
    with pytest.raises(ConversionError, match=r"model: cannot be written \(OSError: no space left\)"):
        export_checkpoint(make("siglip").checkpoint, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_exists_is_left_alone(make: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(ConversionError, match="exists already; remove it or give another --output"):
        export_checkpoint(make("siglip").checkpoint, tmp_path / "model")


def test_directories_that_are_not_there_are_named(make: Callable[..., Any], tmp_path: Path) -> None:
    made = make("siglip")
    with pytest.raises(ConversionError, match=r"--tokenizer is .*nowhere"):
        export_checkpoint(made.checkpoint, tmp_path / "model", tokenizer=tmp_path / "nowhere")
    recipe = make_recipe(made.recipe.architecture, None, tmp_path / "gone")
    checkpoint = write_checkpoint(tmp_path / "checkpoint", made.tensors, recipe)
    with pytest.raises(ConversionError, match=r"the recipe's model.vision is .*gone.*--vision"):
        export_checkpoint(checkpoint, tmp_path / "model")


def test_a_recipe_without_a_tokenizer_asks_for_one(
    make: Callable[..., Any], tmp_path: Path, tokenizer_directory: Path
) -> None:
    made = make("siglip")
    recipe = make_recipe(made.recipe.architecture, None, None)
    checkpoint = write_checkpoint(tmp_path / "checkpoint", made.tensors, recipe)
    with pytest.raises(ConversionError, match=r"no model.tokenizer; give one with --tokenizer"):
        export_checkpoint(checkpoint, tmp_path / "model")
    export_checkpoint(checkpoint, tmp_path / "model", tokenizer=tokenizer_directory)
