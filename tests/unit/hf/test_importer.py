"""Shows what an import takes and what it leaves beside the weights, and that it refuses what it cannot convert."""

import json
import os
import resource
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core import dist_checkpointing
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    CLIPConfig,
    CLIPModel,
    LlamaForCausalLM,
    Qwen2ForCausalLM,
    SiglipConfig,
    SiglipModel,
)

from megatron_sts.config import Recipe, load_recipe, read_run
from megatron_sts.data import image_token_id
from megatron_sts.errors import ConfigError, ConversionError
from megatron_sts.hf import ImportOptions, export_checkpoint, import_llava, import_megatron, import_pair
from megatron_sts.hf.training_checkpoint import TensorReader
from megatron_sts.model.build import build_chunks
from megatron_sts.parallel.groups import group_collection, start_groups
from tests.ranks import run_ranks
from tests.unit.hf.sources import VOCABULARY, language_config, make_llava, nothing, tower_config, write_llava
from tests.unit.hf.tiny_llava import make_tokenizer


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole CLIP, a whole SigLIP2, a Llama without `<image>` whose tokenizer fills its vocabulary, a LLaVA model."""
    root = tmp_path_factory.mktemp("sources")
    torch.manual_seed(0)
    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "vocab_size": 60}
    CLIPModel(CLIPConfig(text_config=text | special, vision_config=tower_config("clip").to_dict())).save_pretrained(
        root / "clip"
    )
    vision = tower_config("siglip2").to_dict() | {"vision_use_head": True}
    SiglipModel(SiglipConfig(text_config=text | special, vision_config=vision)).save_pretrained(root / "siglip2")
    tokenizer = make_tokenizer(image_token=False)
    config = language_config("llama")
    config.vocab_size = len(tokenizer)
    LlamaForCausalLM(config).save_pretrained(root / "llama")
    tokenizer.save_pretrained(root / "llama")
    Qwen2ForCausalLM(language_config("qwen2")).save_pretrained(root / "qwen2")
    tokenizer.save_pretrained(root / "qwen2")
    llava = make_llava("clip", "mistral")
    write_llava(llava, root / "llava", make_tokenizer())
    _change(root / "llava", image_token_index=len(make_tokenizer()) - 1)
    return root


def _change(directory: Path, part: str | None = None, **values: Any) -> None:
    """Change config.json, or a part of it; None removes."""
    file = directory / "config.json"
    config = json.loads(file.read_text())
    target = config[part] if part else config
    for name, value in values.items():
        target.pop(name, None)
        if value is not None:
            target[name] = value
    file.write_text(json.dumps(config))


@pytest.fixture
def copy(sources: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A source that the test may damage."""
    return lambda name: Path(shutil.copytree(sources / name, tmp_path / name))


@pytest.fixture(scope="module")
def pair(sources: Path) -> Path:
    """An import of SigLIP2 and Llama."""
    import_pair(sources / "siglip2", sources / "llama", sources / "pair", ImportOptions(), nothing)
    return sources / "pair"


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


# (part of config.json, its changes, what the message says)
CONFIGS: list[tuple[str | None, dict[str, Any], str]] = [
    (None, {"model_type": None}, "it has no model_type"),
    (None, {"model_type": "llava_next"}, "model_type is 'llava_next'"),
    (None, {"text_config": None}, "without text_config"),
    (None, {"vision_feature_layer": [-2, -5]}, r"vision_feature_layer is \[-2, -5\]"),
    (None, {"projector_hidden_act": "relu"}, "projector_hidden_act is 'relu'"),
    (None, {"image_token_index": 7}, r"image_token_index 7, but the tokenizer's <image> is 19"),
    ("text_config", {"model_type": "gemma2"}, "model_type is 'gemma2'.*llama, mistral, qwen2, qwen3, phi3"),
    ("text_config", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    (
        "text_config",
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}},
        "type is 'dynamic'.*llama3 and linear",
    ),
    ("text_config", {"num_hidden_layers": 1}, "unexpected: model.layers.1"),
    ("text_config", {"intermediate_size": 40}, r"gate_proj.weight has shape \[48, 32\] instead of \[40, 32\]"),
    ("text_config", {"num_attention_heads": 3}, "not divisible by language.query_groups 2|tensors are not those"),
    ("vision_config", {"model_type": "siglip2_vision_model"}, "vision encoders of CLIP, SigLIP and SigLIP2"),
    ("vision_config", {"num_hidden_layers": 4}, "missing: encoder.layers.3"),
]


@pytest.mark.parametrize(("part", "changes", "message"), CONFIGS)
def test_a_configuration_that_cannot_be_converted_is_refused_by_name(
    copy: Callable[[str], Path], tmp_path: Path, part: str | None, changes: dict[str, Any], message: str
) -> None:
    directory = copy("llava")
    _change(directory, part, **changes)
    with pytest.raises(ConversionError, match=message):
        import_llava(directory, tmp_path / "init", ImportOptions(), nothing)
    assert [path.name for path in tmp_path.iterdir()] == ["llava"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1.0, "factor": 8.0, "low_freq_factor": 2.0,
                              "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}},
         "low_freq_factor is 2.0; megatron-core has 1.0 built in"),
        ({"attention_bias": True}, "attention_bias is True; only False"),
        ({"hidden_size": None, "vocab_size": None}, "has no hidden_size, vocab_size"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings, but lm_head.weight is not the embedding"),
        ({"model_type": "gpt2"}, "model_type is 'gpt2'"),
    ],
)  # fmt: skip
def test_a_language_model_that_cannot_be_converted_is_refused_by_name(
    sources: Path, copy: Callable[[str], Path], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    directory = copy("llama")
    _change(directory, **changes)
    with pytest.raises(ConversionError, match=message):
        import_pair(sources / "clip", directory, tmp_path / "init", ImportOptions(), nothing)
    assert [path.name for path in tmp_path.iterdir()] == ["llama"]


def _cut(directory: Path) -> None:
    os.truncate(directory / "model.safetensors", 20_000)


def _drop(directory: Path) -> None:
    file = directory / "model.safetensors"
    tensors = load_file(file)
    del tensors["language_model.model.norm.weight"]
    tensors["language_model.model.adapter.weight"] = torch.zeros(2)
    save_file(tensors, file, metadata={"format": "pt"})


def _stranger(directory: Path) -> None:
    file = directory / "model.safetensors"
    save_file(load_file(file) | {"image_newline": torch.zeros(2)}, file, metadata={"format": "pt"})


def _index(directory: Path) -> None:
    index = {"weight_map": dict.fromkeys(load_file(directory / "model.safetensors"), "model.safetensors") | {"x": "y"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_cut, "cut short or damaged, copy or download it again"),
        (_drop, "missing: model.norm.weight\n  unexpected: model.adapter.weight"),
        (_stranger, "no part of a LLaVA model: image_newline"),
        (_index, r"y: cannot be read"),
        (lambda directory: (directory / "model.safetensors").unlink(), "no model.safetensors"),
        (lambda directory: (directory / "config.json").write_text("{"), "config.json: cannot be used"),
    ],
)
def test_damaged_files_are_refused_and_nothing_is_left(
    copy: Callable[[str], Path], tmp_path: Path, damage: Callable[[Path], Any], message: str
) -> None:
    directory = copy("llava")
    damage(directory)
    with pytest.raises(ConversionError, match=message):
        import_llava(directory, tmp_path / "init", ImportOptions(), nothing)
    assert [path.name for path in tmp_path.iterdir()] == ["llava"]


def test_a_disk_without_room_is_found_before_the_work(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(ConversionError, match=r"needs [\d,]+ bytes, but its disk has 1,000 left"):
        import_llava(sources / "llava", tmp_path / "init", ImportOptions(), nothing)
    assert list(tmp_path.iterdir()) == []


def test_a_small_disk_is_refused(sources: Path, tmp_path: Path) -> None:
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], capture_output=True).returncode:
        pytest.skip("a disk can be mounted by the superuser only")
    try:
        with pytest.raises(ConversionError, match=r"needs [\d,]+ bytes, but its disk has 1,0\d\d,\d\d\d left"):
            import_llava(sources / "llava", tmp_path / "deep" / "init", ImportOptions(), nothing)
        assert list(tmp_path.iterdir()) == []
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_disk_that_fills_up_leaves_nothing(sources: Path, tmp_path: Path) -> None:
    """The kernel refuses files above 50 kB, with the error of a full disk's write."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(ConversionError, match=r"init: cannot be written .*Nothing is left behind"):
            import_llava(sources / "llava", tmp_path / "init", ImportOptions(), nothing)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_import_leaves_nothing(sources: Path, tmp_path: Path) -> None:
    def interrupt(total: int) -> Any:
        def advance(done: int) -> None:
            raise KeyboardInterrupt

        return advance

    with pytest.raises(KeyboardInterrupt):
        import_llava(sources / "llava", tmp_path / "init", ImportOptions(), interrupt)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_import_left_is_replaced(sources: Path, tmp_path: Path) -> None:
    (tmp_path / "init.partial").mkdir()
    (tmp_path / "init.partial" / "__0_0.distcp").touch()
    import_llava(sources / "llava", tmp_path / "init", ImportOptions(), nothing)
    assert [path.name for path in tmp_path.iterdir()] == ["init"]


# ---------------------------------------------------------------------------------------------- recipes, Megatron


def _recipe(init: Path, **language: Any) -> Recipe:
    recipe = read_run(init).recipe
    architecture = recipe.architecture
    sizes = architecture.language.model_copy(update=language)
    model = recipe.model.model_copy(update={"architecture": architecture.model_copy(update={"language": sizes})})
    return recipe.model_copy(update={"model": model})


def test_a_recipe_gives_padding_and_room_and_must_agree_otherwise(sources: Path, pair: Path, tmp_path: Path) -> None:
    recipe = _recipe(pair, vocabulary_padding=16, vocabulary_size=33, maximum_positions=64)
    options = ImportOptions(recipe=recipe)
    import_pair(sources / "siglip2", sources / "llama", tmp_path / "init", options, nothing)
    assert TensorReader(tmp_path / "init").shapes["output_layer.weight"] == (48, 32)
    assert read_run(tmp_path / "init").recipe.architecture == recipe.architecture
    options = ImportOptions(recipe=_recipe(pair, layers=3, rotary_base=7.0))
    with pytest.raises(ConversionError, match=r"language.layers is 3 in the recipe, 2 in the weights; lang"):
        import_pair(sources / "siglip2", sources / "llama", tmp_path / "other", options, nothing)


def _save_megatron(recipe: Recipe, directory: Path, prefix: str) -> dict[str, Any]:
    """A GPTModel's distributed checkpoint as Megatron's own trainer writes it, an optimiser's tensor beside it."""
    start_groups(recipe.parallel, recipe.seed)
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"vision": None})})
    (model,) = build_chunks(recipe, group_collection(), draw_weights=True)
    with torch.no_grad():
        for number, parameter in enumerate(model.language.parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    state = model.language.sharded_state_dict()
    for value in state.values():
        value.key = prefix + value.key
    step = dist_checkpointing.ShardedTensor.from_rank_offsets("optimizer.state.exp_avg.x", torch.ones(2))
    directory.mkdir(parents=True)
    dist_checkpointing.save({"model": state, "step": step, "iteration": 7}, str(directory))
    return {name: tensor.numpy() for name, tensor in model.language.state_dict().items() if tensor is not None}


@pytest.mark.parametrize("prefix", ["", "module.", "language_model."])
def test_a_megatron_checkpoint_is_a_starting_point(sources: Path, pair: Path, tmp_path: Path, prefix: str) -> None:
    """With another padding of the vocabulary than the recipe's, as its own tensor-parallel size makes it."""
    megatron = tmp_path / "megatron"
    theirs = _recipe(pair, vocabulary_padding=4)
    (expected,) = run_ranks(1, _save_megatron, theirs, megatron / "iter_0000007", prefix)
    options = ImportOptions(tokenizer=sources / "llama", recipe=_recipe(pair, vocabulary_padding=16))
    report = import_megatron(sources / "siglip2", megatron, tmp_path / "init", options, nothing)
    reader = TensorReader(tmp_path / "init")
    assert reader.shapes["embedding.word_embeddings.weight"] == (32, 32)
    for name, key, layer in [
        ("decoder.layers.1.self_attention.linear_qkv.weight", "decoder.layers.self_attention.linear_qkv.weight", 1),
        ("decoder.layers.0.input_layernorm.weight", "decoder.layers.self_attention.linear_qkv.layer_norm_weight", 0),
        ("decoder.layers.1.mlp.linear_fc1.weight", "decoder.layers.mlp.linear_fc1.weight", 1),
    ]:
        assert torch.equal(reader.read_layer(key, layer), torch.from_numpy(expected[name]))
    output = torch.from_numpy(expected["output_layer.weight"])
    assert torch.equal(reader.read("output_layer.weight")[:20], output[:20])
    assert not [row for row in report.rows if row.kind == "fresh" and not row.tensor.startswith("projector")]


def test_a_megatron_checkpoint_needs_a_recipe_and_its_own_architecture(
    sources: Path, pair: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConversionError, match="does not say what its model is; give a recipe"):
        import_megatron(sources / "siglip2", pair, tmp_path / "init", ImportOptions(), nothing)
    options = ImportOptions(recipe=_recipe(pair))
    with pytest.raises(ConversionError, match=r"no \.metadata, here or in an iter_\* directory"):
        import_megatron(sources / "siglip2", tmp_path / "empty", tmp_path / "init", options, nothing)


def test_layers_under_their_numbers_are_read_too(sources: Path, pair: Path, tmp_path: Path) -> None:
    """As megatron-core writes models whose layers may differ."""
    reader = TensorReader(pair)
    tensors = {}
    for key in reader.shapes:
        if key.startswith("decoder.layers."):
            for layer in range(2):
                tensors[key.replace("layers.", f"layers.{layer}.")] = reader.read_layer(key, layer)
        elif not key.startswith(("vision.", "projector.")):
            tensors[key] = reader.read(key)
    run_ranks(1, _save_plain, tensors, tmp_path / "megatron")
    options = ImportOptions(tokenizer=sources / "llama", recipe=_recipe(pair))
    import_megatron(sources / "siglip2", tmp_path / "megatron", tmp_path / "init", options, nothing)
    found = TensorReader(tmp_path / "init")
    assert all(torch.equal(found.read(key), reader.read(key)) for key in reader.shapes)


def _save_plain(tensors: dict[str, torch.Tensor], directory: Path) -> None:
    from megatron_sts.parallel.device import prepare_device

    prepare_device()
    directory.mkdir()
    shards = {key: dist_checkpointing.ShardedTensor.from_rank_offsets(key, value) for key, value in tensors.items()}
    dist_checkpointing.save(shards, str(directory))


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
