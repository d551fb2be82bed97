"""Tensors of Hugging Face directories, read one at a time or a few rows of one: a model larger than memory streams."""

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from megatron_sts.errors import ConversionError

_SAFETENSORS = "model.safetensors"
_PICKLE = "pytorch_model.bin"
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class TensorSource(Protocol):
    """Named tensors that are read when they are asked for."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Name and shape of every tensor."""

    def dtype(self, name: str) -> torch.dtype:
        """The dtype a tensor is stored in."""

    def read(self, name: str, rows: slice = slice(None)) -> Tensor:
        """A tensor, or some rows of it; ConversionError or CheckpointError where it cannot be read."""


class Renamed:
    """A part of a source under names of its own."""

    def __init__(self, source: TensorSource, names: Mapping[str, str]):
        """names: the name here -> the name in the source."""
        self._source, self.names = source, names

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name here and shape of every tensor."""
        return {name: self._source.shapes[original] for name, original in self.names.items()}

    def dtype(self, name: str) -> torch.dtype:
        """The dtype a tensor is stored in."""
        return self._source.dtype(self.names[name])

    def read(self, name: str, rows: slice = slice(None)) -> Tensor:
        """A tensor, or some rows of it."""
        return self._source.read(self.names[name], rows)


class SafetensorsSource:
    """The safetensors files of a directory, with or without an index."""

    def __init__(self, directory: Path):
        """Reads the headers; ConversionError for a missing or damaged file, or one that the index contradicts."""
        self._handles: dict[str, Any] = {}
        self._file_of: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._dtypes: dict[str, str] = {}
        index = directory / f"{_SAFETENSORS}.index.json"
        named = _weight_map(index) if index.is_file() else None
        for file in sorted({directory / name for name in named.values()} if named else {directory / _SAFETENSORS}):
            self._read_header(file)
        if named is not None:
            _check_index(index, named, {name: file.name for name, file in self._file_of.items()})

    def _read_header(self, file: Path) -> None:
        try:
            handle = safe_open(file, framework="pt")
            for name in handle.keys():  # noqa: SIM118
                stored = handle.get_slice(name)
                self.shapes[name] = tuple(stored.get_shape())
                self._dtypes[name] = stored.get_dtype()
                self._file_of[name] = file
                self._handles[name] = handle
        except (OSError, SafetensorError) as error:
            raise ConversionError(
                f"{file}: cannot be read ({error}); it is missing, cut short or damaged, copy or download it again"
            ) from error

    def dtype(self, name: str) -> torch.dtype:
        """The dtype a tensor is stored in; ConversionError where it is none that a model is trained in."""
        stored = self._dtypes[name]
        if stored not in _DTYPES:
            raise ConversionError(
                f"{self._file_of[name]}: {name} is stored as {stored}; give the model's weights as they were before "
                f"quantisation ({', '.join(_DTYPES)})"
            )
        return _DTYPES[stored]

    def read(self, name: str, rows: slice = slice(None)) -> Tensor:
        """A tensor, or some rows of it."""
        try:
            handle = self._handles[name]
            return handle.get_tensor(name) if rows == slice(None) else handle.get_slice(name)[rows]
        except (OSError, SafetensorError) as error:
            raise ConversionError(f"{self._file_of[name]}: {name} cannot be read ({error}); copy it again") from error


class PickleSource:
    """The pickle files of a directory, read by torch's restricted loader and mapped into memory, not copied."""

    def __init__(self, directory: Path):
        """ConversionError for a missing or damaged file, or one that holds more than tensors."""
        index = directory / f"{_PICKLE}.index.json"
        named = _weight_map(index) if index.is_file() else None
        self._tensors: dict[str, Tensor] = {}
        found: dict[str, str] = {}
        for file in sorted({directory / name for name in named.values()} if named else {directory / _PICKLE}):
            try:
                content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
                raise ConversionError(
                    f"{file}: cannot be loaded with torch.load(weights_only=True, mmap=True) ({error}); convert the "
                    "model to safetensors where it came from"
                ) from error
            tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
            self._tensors |= tensors
            found |= dict.fromkeys(tensors, file.name)
        if named is not None:
            _check_index(index, named, found)
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}

    def dtype(self, name: str) -> torch.dtype:
        """The dtype a tensor is stored in."""
        return self._tensors[name].dtype

    def read(self, name: str, rows: slice = slice(None)) -> Tensor:
        """A tensor, or some rows of it."""
        return self._tensors[name][rows] if rows != slice(None) else self._tensors[name]


def open_source(directory: Path, allow_pickle: bool = False) -> TensorSource:
    """The tensors of a Hugging Face directory.

    Raises ConversionError where it has none, or has them as pickle alone and that is not allowed.
    """
    if (directory / _SAFETENSORS).is_file() or (directory / f"{_SAFETENSORS}.index.json").is_file():
        return SafetensorsSource(directory)
    if (directory / _PICKLE).is_file() or (directory / f"{_PICKLE}.index.json").is_file():
        if allow_pickle:
            return PickleSource(directory)
        raise ConversionError(
            f"{directory}: the weights are in {_PICKLE}, a pickle, which can run code when it is loaded; download the "
            "safetensors files, or pass --allow-pickle, which loads it with torch's weights_only"
        )
    raise ConversionError(
        f"{directory}: no {_SAFETENSORS} and no {_SAFETENSORS}.index.json; give a directory with a model's weights"
    )


def _weight_map(index: Path) -> dict[str, str]:
    try:
        named = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        if not named or not all(Path(file).name == file for file in named.values()):
            raise ValueError("its weight_map is empty or leads out of the directory")
        return dict(named)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConversionError(f"{index}: cannot be used ({error}); copy or download it again") from error


def _check_index(index: Path, named: Mapping[str, str], found: Mapping[str, str]) -> None:
    differing = sorted(name for name in named.keys() | found.keys() if named.get(name) != found.get(name))
    if differing:
        raise ConversionError(
            f"{index}: it and the files disagree about {', '.join(differing[:10])}"
            f"{f' and {len(differing) - 10} more' if len(differing) > 10 else ''}; copy or download all files again"
        )
