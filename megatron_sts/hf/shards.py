"""Writes tensors one after another into safetensors files of bounded size, and their index."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

_SMALLEST_BOUND, _LARGEST_BOUND = 10**9, 5 * 10**9


def shard_bytes(total: int) -> int:
    """The bound of a file for weights of `total` bytes: what is held in memory stays a small share of the model."""
    return min(_LARGEST_BOUND, max(_SMALLEST_BOUND, total // 16))


class ShardWriter:
    """Collects tensors until a file is full; no more than one file's tensors are held in memory.

    `finish` gives the files their final names: `model.safetensors` if one is enough, else
    `model-00001-of-00002.safetensors`, ... and `model.safetensors.index.json`.
    """

    def __init__(self, directory: Path, largest_bytes: int = _LARGEST_BOUND):
        """Files go to `directory` and hold at most `largest_bytes`, unless one tensor alone is larger."""
        self._directory = directory
        self._largest_bytes = largest_bytes
        self._pending: dict[str, Tensor] = {}
        self._pending_bytes = 0
        self._shards: list[list[str]] = []
        self.names: set[str] = set()
        self.total_bytes = 0
        self.total_parameters = 0

    def add(self, name: str, tensor: Tensor, dtype: torch.dtype) -> int:
        """Write `tensor` as `dtype` under `name`; returns its bytes."""
        assert name not in self.names
        if self._pending and self._pending_bytes + tensor.numel() * dtype.itemsize > self._largest_bytes:
            self._write()
        # A copy of its own: safetensors refuses views that share their memory.
        stored = tensor.detach().to(dtype=dtype, copy=True, memory_format=torch.contiguous_format)
        self._pending[name] = stored
        self._pending_bytes += stored.nbytes
        self.names.add(name)
        self.total_bytes += stored.nbytes
        self.total_parameters += stored.numel()
        return stored.nbytes

    def finish(self) -> list[str]:
        """Write what is left and return the names of the weight files."""
        if self._pending:
            self._write()
        count = len(self._shards)
        if count == 1:
            files = ["model.safetensors"]
        else:
            files = [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
        for number, file in enumerate(files):
            self._partial(number).rename(self._directory / file)
        if count > 1:
            index = {
                "metadata": {"total_size": self.total_bytes, "total_parameters": self.total_parameters},
                "weight_map": {name: file for file, names in zip(files, self._shards, strict=True) for name in names},
            }
            text = json.dumps(index, indent=2, sort_keys=True) + "\n"
            (self._directory / "model.safetensors.index.json").write_text(text, encoding="utf-8")
        return files

    def _write(self) -> None:
        save_file(self._pending, self._partial(len(self._shards)), metadata={"format": "pt"})
        self._shards.append(list(self._pending))
        self._pending, self._pending_bytes = {}, 0

    def _partial(self, number: int) -> Path:
        return self._directory / f"partial-{number}.safetensors"
