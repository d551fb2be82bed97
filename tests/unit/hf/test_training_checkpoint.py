"""Shows that one process reads any layer of a training checkpoint, and refuses the damaged and the unsafe."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint.metadata

from megatron_sts.config import read_run
from megatron_sts.errors import CheckpointError
from megatron_sts.hf.training_checkpoint import TensorReader


@pytest.fixture
def copied(make: Callable[..., Any], tmp_path: Path) -> Path:
    """A checkpoint that the test may damage."""
    return Path(shutil.copytree(make("siglip").checkpoint, tmp_path / "checkpoint"))


def test_every_tensor_is_read_whole_and_layer_by_layer_without_a_process_group(
    make: Callable[..., Any],
) -> None:
    made = make("siglip")
    reader = TensorReader(made.checkpoint)
    assert not torch.distributed.is_initialized()
    assert reader.shapes == {key: tuple(tensor.shape) for key, tensor in made.tensors.items()}
    for key, tensor in made.tensors.items():
        assert torch.equal(reader.read(key), tensor)
        assert torch.equal(reader.read(key, slice(1, 3)), tensor[1:3])
        if key.startswith("decoder.layers."):
            for layer in range(3):
                assert torch.equal(reader.read_layer(key, layer), tensor[layer])


def test_optimizer_tensors_and_what_is_no_tensor_are_left_out(make: Callable[..., Any]) -> None:
    shapes = TensorReader(make("siglip").checkpoint).shapes
    assert not [key for key in shapes if "optimizer" in key or "_extra_state" in key]


def test_the_run_is_read_back(make: Callable[..., Any]) -> None:
    made = make("clip")
    run = read_run(made.checkpoint)
    assert (run.stage, run.step) == ("tune", 10)
    assert run.recipe == made.recipe
    assert run.versions["megatron_sts"] == "0.1.0"


def test_a_missing_run_file_names_the_checkpoint_that_was_meant(copied: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no run.json.*give .*checkpoint, the last one there"):
        read_run(copied.parent)
    with pytest.raises(CheckpointError, match=r"tune-00000011: does not exist; give .*checkpoint, the last one there"):
        read_run(copied.parent / "tune-00000011")
    (copied.parent / "latest").write_text("checkpoint")
    with pytest.raises(CheckpointError, match=r"latest: is a file.*; give .*checkpoint, the last one there"):
        read_run(copied.parent / "latest")
    (copied / "run.json").unlink()
    with pytest.raises(CheckpointError, match=r"no run.json.*give a finished checkpoint"):
        read_run(copied)
    (copied / "config.json").write_text("{}")
    with pytest.raises(
        CheckpointError, match=r"but a Hugging Face model; make a checkpoint.* --language .*checkpoint "
    ):
        read_run(copied)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "found format 2, this version reads 1"),
        ({"recipe": {"seed": 1}}, "cannot be read"),
        ({"step": "many"}, "cannot be read"),
    ],
)
def test_a_run_file_of_another_format_or_damaged_is_refused(copied: Path, change: dict[str, Any], message: str) -> None:
    file = copied / "run.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(CheckpointError, match=message):
        read_run(copied)


def test_an_unfinished_checkpoint_is_refused(copied: Path) -> None:
    (copied / ".metadata").unlink()
    with pytest.raises(CheckpointError, match="never finished"):
        TensorReader(copied)


@pytest.mark.parametrize("damage", ["cut", "removed"])
def test_damaged_tensor_files_are_refused(copied: Path, damage: str) -> None:
    for file in copied.glob("*.distcp"):
        if damage == "cut":
            os.truncate(file, 1000)
        else:
            file.unlink()
    reader = TensorReader(copied)
    with pytest.raises(CheckpointError, match="missing or damaged"):
        all(reader.read(key) is not None for key in reader.shapes)


class _Harmful:
    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)


def test_metadata_that_would_run_code_is_refused_and_does_not_run(copied: Path, tmp_path: Path) -> None:
    (copied / ".metadata").write_bytes(pickle.dumps(_Harmful(tmp_path / "made")))
    with pytest.raises(CheckpointError, match=r"refused to load posix.mkdir"):
        TensorReader(copied)
    assert not (tmp_path / "made").exists()


def test_a_module_reached_through_a_record_module_is_refused(copied: Path) -> None:
    # Protocol 4 may name attributes of a module: os is one of torch's filesystem module.
    code = b"\x80\x04\x8c\x27torch.distributed.checkpoint.filesystem\x8c\x06os.sep\x93."
    (copied / ".metadata").write_bytes(code)
    with pytest.raises(CheckpointError, match="refused to load"):
        TensorReader(copied)


class _OlderPickler(pickle.Pickler):
    """Writes members of an Enum as Python 3.11.0 to 3.11.3 do."""

    def reducer_override(self, value: Any) -> Any:
        return (getattr, (type(value), value.name)) if isinstance(value, Enum) else NotImplemented


def test_metadata_written_by_python_before_3_11_4_is_read(make: Callable[..., Any], copied: Path) -> None:
    metadata = pickle.loads((copied / ".metadata").read_bytes())
    with (copied / ".metadata").open("wb") as stream:
        _OlderPickler(stream).dump(metadata)
    assert b"getattr" in (copied / ".metadata").read_bytes()
    reader = TensorReader(copied)
    for key, tensor in make("siglip").tensors.items():
        assert torch.equal(reader.read(key), tensor)


class _Attribute:
    def __reduce__(self) -> Any:
        return getattr, (torch.distributed.checkpoint.metadata.TensorStorageMetadata, "__init__")


def test_getattr_of_anything_but_an_enum_is_refused(copied: Path) -> None:
    (copied / ".metadata").write_bytes(pickle.dumps(_Attribute()))
    with pytest.raises(CheckpointError, match="refused to load __init__ of"):
        TensorReader(copied)
