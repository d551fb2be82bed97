"""Shows what an import takes, and what it leaves beside the weights for a recipe to find."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, AutoTokenizer, BitImageProcessorPil, Dinov2Model

from megatron_sts.config import Recipe, load_recipe, read_run
from megatron_sts.data import image_token_id, load_image_processor
from megatron_sts.errors import ConfigError, ConversionError
from megatron_sts.hf import ImportOptions, export_checkpoint, import_llava, import_pair
from megatron_sts.hf.read_config import read_vision_config, vision_architecture
from megatron_sts.hf.training_checkpoint import TensorReader
from megatron_sts.hf.verify import verify_export
from megatron_sts.model.build import build_chunks
from megatron_sts.parallel.groups import group_collection, start_groups
from tests.ranks import run_ranks
from tests.unit.hf.sources import VOCABULARY, nothing, recipe_of, tower_config
from tests.unit.hf.tiny_llava import make_tokenizer


def test_a_pair_is_both_sources_bitwise_and_a_fresh_projector(sources: Path, pair: Path) -> None:
    reader = TensorReader(pair)
    language, vision = (
        load_file(sources / "llama" / "model.safetensors"),
        load_file(sources / "siglip2" / "model.safetensors"),
    )
    count = len(make_tokenizer(image_token=False))
    embedding = reader.read("embedding.word_embeddings.weight")
    assert torch.equal(embedding[:count], language["model.embed_tokens.weight"])
    torch.testing.assert_close(embedding[count], embedding[:count].mean(0))
    assert embedding.shape == (128, 32)
    assert not embedding[count + 1 :].any()
    down = reader.read("decoder.layers.mlp.linear_fc2.weight")
    assert torch.equal(down[1], language["model.layers.1.mlp.down_proj.weight"])
    norm = "post_layernorm.weight"
    assert torch.equal(reader.read(f"vision.{norm}"), vision[f"vision_model.{norm}"])
    assert reader.read("projector.linear_1.weight").std() == pytest.approx(24**-0.5, rel=0.1)
    assert not reader.read("projector.linear_1.bias").any()


def test_the_report_says_what_became_of_every_tensor(sources: Path, pair: Path) -> None:
    report = json.loads((pair / "tensors.json").read_text())
    by_kind: dict[str, list[str]] = {"mapped": [], "carried": [], "fresh": []}
    for row in report["rows"]:
        by_kind[row["kind"]].append(row["tensor"])
    assert "decoder.layers.self_attention.linear_qkv.weight[1]" in by_kind["mapped"]
    assert "vision.encoder.layers.2.mlp.fc1.weight" in by_kind["carried"]
    assert "embedding.word_embeddings.weight[19:20]" in by_kind["fresh"]
    assert len([name for name in by_kind["fresh"] if name.startswith("projector.")]) == 4
    named = {name for row in report["rows"] for name in row["sources"]} | set(report["left_out"])
    vision = {name.removeprefix("vision_model.") for name in load_file(sources / "siglip2" / "model.safetensors")}
    everything = set(load_file(sources / "llama" / "model.safetensors")) | vision
    assert {name.removeprefix("vision_model.") for name in named} == everything
    assert report["left_out"]["vision_model.head.probe"].startswith("pooling head")


def test_a_dinov2_takes_images_of_the_size_its_processing_makes_or_the_recipe_asks_for(
    sources: Path, tmp_path: Path
) -> None:
    """Positions for 3 x 3 patches; its own images have 2 x 2 (28 px), the recipe's 4 x 4 (56 px)."""
    torch.manual_seed(0)
    source = tmp_path / "dinov2"
    encoder = Dinov2Model(tower_config("dinov2"))
    encoder.save_pretrained(source)
    crop = {"height": 28, "width": 28}
    BitImageProcessorPil(size={"shortest_edge": 32}, crop_size=crop, image_mean=[0.1] * 3).save_pretrained(source)
    picture = Image.linear_gradient("L").convert("RGB")

    import_pair(source, sources / "llama", tmp_path / "own", ImportOptions(), nothing)
    recipe = read_run(tmp_path / "own").recipe
    vision = recipe.architecture.vision
    assert (vision.image_size, vision.pretrained_image_size, vision.ffn_hidden_size) == (28, 42, 48)
    assert (recipe.architecture.visual_tokens, vision.feature_select) == (4, "default")
    kept = load_image_processor(tmp_path / "own" / "vision", "dinov2", 28)
    assert (kept.size["shortest_edge"], kept.image_mean[0]) == (32, 0.1)
    reader = TensorReader(tmp_path / "own")
    assert all(torch.equal(reader.read(f"vision.{name}"), tensor) for name, tensor in encoder.state_dict().items())

    sizes = recipe.architecture.model_copy(update={"vision": vision.model_copy(update={"image_size": 56})})
    asked = recipe.model_copy(update={"model": recipe.model.model_copy(update={"architecture": sizes})})
    report = import_pair(source, sources / "llama", tmp_path / "larger", ImportOptions(recipe=asked), nothing)
    assert any("makes images of 28 px, the recipe asks for 56" in warning for warning in report.warnings)
    assert read_run(tmp_path / "larger").recipe.architecture.visual_tokens == 16
    whole = load_image_processor(tmp_path / "larger" / "vision", "dinov2", 56)
    assert (whole.size["shortest_edge"], whole.image_mean[0]) == (56, 0.485)

    export_checkpoint(tmp_path / "larger", tmp_path / "model")
    verification = verify_export(tmp_path / "model")
    assert verification.logit_difference is None
    processor = AutoProcessor.from_pretrained(tmp_path / "model", backend="pil")
    batch = processor(text="USER: <image> yes", images=picture, return_tensors="pt")
    assert (batch["input_ids"] == processor.image_token_id).sum() == 16

    other = vision.model_copy(update={"pretrained_image_size": 56})
    sizes = recipe.architecture.model_copy(update={"vision": other})
    asked = recipe.model_copy(update={"model": recipe.model.model_copy(update={"architecture": sizes})})
    with pytest.raises(ConversionError, match="pretrained_image_size is 56 in the recipe, 42 in the weights"):
        import_pair(source, sources / "llama", tmp_path / "wrong", ImportOptions(recipe=asked), nothing)


def test_a_dinov2_with_another_mlp_is_refused(tmp_path: Path) -> None:
    config = tower_config("dinov2")
    config.use_swiglu_ffn = True
    config.save_pretrained(tmp_path)
    with pytest.raises(ConversionError, match="use_swiglu_ffn is True; only False"):
        vision_architecture(read_vision_config(tmp_path), tmp_path / "config.json")


def test_a_recipe_needs_the_checkpoint_alone(pair: Path, tmp_path: Path) -> None:
    stage = {
        "name": "align",
        "data": {"train": "a.json", "max_tokens": 100},
        "trains": ["projector"],
        "steps": 1,
        "batch": {"global": 1, "micro": 1},
        "learning_rate": {"projector": 1e-3},
    }
    recipe_file = tmp_path / "recipe.yaml"
    recipe_file.write_text(json.dumps({"output_dir": "run", "model": {"init": str(pair)}, "stages": [stage]}))
    recipe = load_recipe(recipe_file, check_files=False)
    assert (recipe.model.vision, recipe.model.tokenizer) == (pair / "vision", pair / "tokenizer")
    assert recipe.architecture == read_run(pair).recipe.architecture
    assert recipe.architecture.vision.feature_select == "full"
    assert recipe.architecture.language.vocabulary_size == 20
    assert recipe.architecture.language.rotary_scaling is not None
    assert image_token_id(AutoTokenizer.from_pretrained(pair / "tokenizer")) == 19
    assert load_recipe(recipe_file, ["model.tokenizer=mine"], check_files=False).model.tokenizer == Path("mine")


def test_a_pair_goes_back_without_its_pooling_head(sources: Path, pair: Path, tmp_path: Path) -> None:
    export_checkpoint(pair, tmp_path / "model")
    found = load_file(tmp_path / "model" / "model.safetensors")
    language = load_file(sources / "llama" / "model.safetensors")
    for name, tensor in language.items():
        assert torch.equal(found[f"language_model.{name}"][: len(tensor)], tensor), name
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["vision_config"]["vision_use_head"] is False
    assert config["vision_feature_select_strategy"] == "full"
    assert not [name for name in found if "head.probe" in name]


def test_a_vocabulary_larger_than_the_tokenizer_has_room_for_the_image_token(sources: Path, tmp_path: Path) -> None:
    report = import_pair(sources / "clip", sources / "qwen2", tmp_path / "init", ImportOptions(), nothing)
    assert read_run(tmp_path / "init").recipe.architecture.language.vocabulary_size == VOCABULARY
    assert not [row for row in report.rows if row.kind == "fresh" and "embedding" in row.tensor]
    assert "output_layer.weight" not in TensorReader(tmp_path / "init").shapes


def test_the_dtype_is_kept_or_as_asked_for(copy: Callable[[str], Path], tmp_path: Path) -> None:
    directory = copy("llava")
    file = directory / "model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    import_llava(directory, tmp_path / "kept", ImportOptions(), nothing)
    assert TensorReader(tmp_path / "kept").dtype("decoder.final_layernorm.weight") == torch.bfloat16
    export_checkpoint(tmp_path / "kept", tmp_path / "model")
    found = load_file(tmp_path / "model" / "model.safetensors")
    name = "language_model.model.layers.0.self_attn.k_proj.weight"
    assert torch.equal(found[name], load_file(file)[name])
    assert json.loads((tmp_path / "model" / "config.json").read_text())["dtype"] == "bfloat16"
    import_llava(directory, tmp_path / "cast", ImportOptions(dtype=torch.float32), nothing)
    assert TensorReader(tmp_path / "cast").dtype("decoder.final_layernorm.weight") == torch.float32


def test_the_hubs_older_layout_is_read_like_the_newer(copy: Callable[[str], Path], tmp_path: Path) -> None:
    directory = copy("llava")
    import_llava(directory, tmp_path / "newer", ImportOptions(), nothing)
    file = directory / "model.safetensors"
    tensors = {
        name.replace("vision_tower.", "vision_tower.vision_model."): tensor for name, tensor in load_file(file).items()
    }
    tensors["vision_tower.vision_model.embeddings.position_ids"] = torch.arange(5)
    tensors["language_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    halves = [dict(list(tensors.items())[start::2]) for start in (0, 1)]
    file.unlink()
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for name, half in zip(names, halves, strict=True):
        save_file(half, directory / name, metadata={"format": "pt"})
    index = {"weight_map": {key: name for name, half in zip(names, halves, strict=True) for key in half}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    report = import_llava(directory, tmp_path / "older", ImportOptions(), nothing)
    assert {name.rsplit(".", 1)[1] for name in report.left_out} == {"position_ids", "inv_freq"}
    older, newer = TensorReader(tmp_path / "older"), TensorReader(tmp_path / "newer")
    assert older.shapes == newer.shapes
    assert all(torch.equal(older.read(key), newer.read(key)) for key in newer.shapes)


def test_the_image_processing_of_a_transformers_5_directory_is_found(exported: Path, tmp_path: Path) -> None:
    """There it lies in processor_config.json alone."""
    directory = Path(shutil.copytree(exported, tmp_path / "model"))
    expected = json.loads((directory / "preprocessor_config.json").read_text())
    (directory / "preprocessor_config.json").unlink()
    report = import_llava(directory, tmp_path / "init", ImportOptions(), nothing)
    assert not report.warnings
    found = json.loads((tmp_path / "init" / "vision" / "preprocessor_config.json").read_text())
    assert found["size"] == expected["size"] == {"height": 28, "width": 28}
    assert found["image_mean"] == expected["image_mean"]


def test_a_source_without_a_tokenizer_converts_with_a_warning(copy: Callable[[str], Path], tmp_path: Path) -> None:
    directory = copy("llava")
    for file in directory.glob("*token*"):
        file.unlink()
    report = import_llava(directory, tmp_path / "init", ImportOptions(), nothing)
    assert "has no tokenizer" in report.warnings[0]
    assert not (tmp_path / "init" / "tokenizer").exists()
    with pytest.raises(ConversionError, match=r"no model\.tokenizer; give one with --tokenizer"):
        export_checkpoint(tmp_path / "init", tmp_path / "model")


def test_a_pickle_is_refused_unless_it_is_asked_for(copy: Callable[[str], Path], tmp_path: Path) -> None:
    directory = copy("llava")
    expected = load_file(directory / "model.safetensors")
    torch.save(expected, directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()
    with pytest.raises(ConversionError, match=r"a pickle, which can run code.*--allow-pickle"):
        import_llava(directory, tmp_path / "init", ImportOptions(), nothing)
    import_llava(directory, tmp_path / "init", ImportOptions(allow_pickle=True), nothing)
    found = TensorReader(tmp_path / "init").read("projector.linear_2.weight")
    assert torch.equal(found, expected["multi_modal_projector.linear_2.weight"])


class _Harmful:
    def __reduce__(self) -> Any:
        return os.mkdir, ("/nowhere/at/all",)


def test_a_pickle_with_code_does_not_run(copy: Callable[[str], Path], tmp_path: Path) -> None:
    directory = copy("llava")
    torch.save({"model": _Harmful()}, directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()
    with pytest.raises(ConversionError, match="convert the model to safetensors"):
        import_llava(directory, tmp_path / "init", ImportOptions(allow_pickle=True), nothing)


def test_a_recipe_gives_padding_and_room_and_must_agree_otherwise(sources: Path, pair: Path, tmp_path: Path) -> None:
    recipe = recipe_of(pair, vocabulary_padding=16, vocabulary_size=33, maximum_positions=64)
    options = ImportOptions(recipe=recipe)
    import_pair(sources / "siglip2", sources / "llama", tmp_path / "init", options, nothing)
    assert TensorReader(tmp_path / "init").shapes["output_layer.weight"] == (48, 32)
    assert read_run(tmp_path / "init").recipe.architecture == recipe.architecture
    options = ImportOptions(recipe=recipe_of(pair, layers=3, rotary_base=7.0))
    with pytest.raises(ConversionError, match=r"language.layers is 3 in the recipe, 2 in the weights; lang"):
        import_pair(sources / "siglip2", sources / "llama", tmp_path / "other", options, nothing)


def test_a_tower_directory_without_weights_needs_a_checkpoint(pair: Path) -> None:
    """The tower's weights are the checkpoint's; without one there are none to draw on."""
    recipe = read_run(pair).recipe
    (message,) = run_ranks(1, _build_fresh, recipe)
    assert "has no weights that can be read" in message
    assert "model.init" in message


def _build_fresh(recipe: Recipe) -> str:
    start_groups(recipe.parallel, recipe.seed)
    try:
        build_chunks(recipe, group_collection(), draw_weights=True)
    except ConfigError as error:
        return str(error)
    return "built"
