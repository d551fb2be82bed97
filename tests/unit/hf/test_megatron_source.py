"""Shows that a distributed checkpoint of Megatron's own trainer is a starting point."""

from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core import dist_checkpointing

from megatron_sts.config import Recipe
from megatron_sts.errors import ConversionError
from megatron_sts.hf import ImportOptions, import_megatron
from megatron_sts.hf.training_checkpoint import TensorReader
from megatron_sts.model.build import build_chunks
from megatron_sts.parallel.groups import group_collection, start_groups
from tests.ranks import run_ranks
from tests.unit.hf.sources import nothing, recipe_of


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
    theirs = recipe_of(pair, vocabulary_padding=4)
    (expected,) = run_ranks(1, _save_megatron, theirs, megatron / "iter_0000007", prefix)
    options = ImportOptions(tokenizer=sources / "llama", recipe=recipe_of(pair, vocabulary_padding=16))
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
    options = ImportOptions(recipe=recipe_of(pair))
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
    options = ImportOptions(tokenizer=sources / "llama", recipe=recipe_of(pair))
    import_megatron(sources / "siglip2", tmp_path / "megatron", tmp_path / "init", options, nothing)
    found = TensorReader(tmp_path / "init")
    assert all(torch.equal(found.read(key), reader.read(key)) for key in reader.shapes)


def _save_plain(tensors: dict[str, torch.Tensor], directory: Path) -> None:
    from megatron_sts.parallel.device import prepare_device

    prepare_device()
    directory.mkdir()
    shards = {key: dist_checkpointing.ShardedTensor.from_rank_offsets(key, value) for key, value in tensors.items()}
    dist_checkpointing.save(shards, str(directory))
