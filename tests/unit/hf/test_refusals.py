"""Shows that an import refuses what it cannot convert, by name, and leaves nothing half-written behind."""

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
from safetensors.torch import load_file, save_file

from megatron_sts.errors import ConversionError
from megatron_sts.hf import ImportOptions, import_llava, import_pair
from tests.unit.hf.sources import change_config, nothing

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
    change_config(directory, part, **changes)
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
    change_config(directory, **changes)
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
