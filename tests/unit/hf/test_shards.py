"""Shows that weights are split over files at the bound, with an index that names every tensor."""

import json
from pathlib import Path

import torch
from safetensors import safe_open

from megatron_sts.hf.shards import ShardWriter


def read(file: Path) -> dict[str, torch.Tensor]:
    with safe_open(file, framework="pt") as stored:
        assert stored.metadata() == {"format": "pt"}
        return {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118


def test_one_file_has_no_number_and_no_index(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path)
    writer.add("a", torch.arange(4.0), torch.bfloat16)
    assert writer.finish() == ["model.safetensors"]
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    assert torch.equal(read(tmp_path / "model.safetensors")["a"], torch.arange(4.0).bfloat16())


def test_a_file_is_closed_before_it_exceeds_the_bound(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, largest_bytes=32)
    for name in "abc":
        writer.add(name, torch.full((4,), float(ord(name))), torch.float32)
    files = writer.finish()
    assert files == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert [sorted(read(tmp_path / file)) for file in files] == [["a", "b"], ["c"]]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {"a": files[0], "b": files[0], "c": files[1]}
    assert index["metadata"]["total_size"] == 48


def test_views_of_one_tensor_are_stored_apart(tmp_path: Path) -> None:
    both = torch.arange(6.0)
    writer = ShardWriter(tmp_path)
    writer.add("left", both[:3], torch.float32)
    writer.add("right", both[3:], torch.float32)
    writer.finish()
    stored = read(tmp_path / "model.safetensors")
    assert stored["left"].tolist() == [0, 1, 2]
    assert stored["right"].tolist() == [3, 4, 5]
