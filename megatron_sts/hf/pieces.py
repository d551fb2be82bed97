"""The tensors of a new checkpoint as pieces that are made when they are written."""

from collections.abc import Iterator
from functools import cache, partial
from math import prod

import torch
from torch import Tensor

from megatron_sts.config import LanguageArchitecture, VisionArchitecture
from megatron_sts.errors import ConversionError
from megatron_sts.hf.checkpoint_writer import Make, Piece
from megatron_sts.hf.families import LAYERS, Rule
from megatron_sts.hf.language import hugging_face_names, located_rules, megatron_key
from megatron_sts.hf.names import PROJECTOR, checkpoint_vision_name, runs
from megatron_sts.hf.report import Kind, TensorReport, TensorRow
from megatron_sts.hf.source import TensorSource
from megatron_sts.model.initialize import fresh_tensor

# A vocabulary's rows are written in blocks of about this many bytes.
_BLOCK_BYTES = 128 * 2**20


class PieceMaker:
    """Makes the pieces of one checkpoint and enters each into the report."""

    def __init__(self, language: LanguageArchitecture, dtype: torch.dtype | None, report: TensorReport):
        """dtype: of every tensor; None: as its source has it."""
        self._language = language
        self._dtype = dtype
        self._report = report
        self._dtypes: dict[str, torch.dtype] = {}

    def language_pieces(self, source: TensorSource) -> Iterator[Piece]:
        """From a language model under Hugging Face's names, which have been checked."""
        for rule, layer in located_rules(self._language):
            names = hugging_face_names(rule, layer)
            if rule.of_vocabulary:
                yield from self._vocabulary_pieces(rule, source, names[0])
            else:
                yield self._piece(rule, layer, source, names, partial(_merged, rule, source, names, self._language))

    def megatron_pieces(self, source: TensorSource) -> Iterator[Piece]:
        """From a language model under megatron-core's names, layers stacked or each under its number."""
        for rule, layer in located_rules(self._language):
            key = megatron_key(rule, layer)
            if rule.of_vocabulary:
                yield from self._vocabulary_pieces(rule, source, key)
            elif layer is None or key in source.shapes:
                rows = slice(None) if layer is None else slice(layer, layer + 1)
                yield self._piece(rule, layer, source, (key,), partial(source.read, key, rows))
            else:
                numbered = f"{LAYERS}{layer}.{rule.key}"
                yield self._piece(rule, layer, source, (numbered,), partial(source.read, numbered))

    def vision_pieces(
        self, shapes: dict[str, tuple[int, ...]], vision: VisionArchitecture, source: TensorSource
    ) -> Iterator[Piece]:
        """From a vision encoder under its own names. shapes: of its tensors by their checkpoint names."""
        for key, shape in shapes.items():
            name = checkpoint_vision_name(key)
            dtype = self._dtype_of(source, (name,))
            kind: Kind = "mapped" if runs(name, vision.used_layers) else "carried"
            self._report.rows.append(TensorRow(key, kind, (name,), shape, _name(dtype)))
            yield Piece(key, shape, (0,) * len(shape), shape, dtype, partial(source.read, name))

    def projector_pieces(self, shapes: dict[str, tuple[int, ...]], source: TensorSource) -> Iterator[Piece]:
        """From a projector under its own names. shapes: of its tensors by their checkpoint names."""
        for key, shape in shapes.items():
            name = key.removeprefix(PROJECTOR)
            dtype = self._dtype_of(source, (name,))
            self._report.rows.append(TensorRow(key, "mapped", (name,), shape, _name(dtype)))
            yield Piece(key, shape, (0,) * len(shape), shape, dtype, partial(source.read, name))

    def fresh_projector_pieces(
        self, shapes: dict[str, tuple[int, ...]], seed: int, dtype: torch.dtype
    ) -> Iterator[Piece]:
        """A projector as training would draw it from this seed."""
        for key, shape in shapes.items():
            self._report.rows.append(TensorRow(key, "fresh", (), shape, _name(self._dtype or dtype)))
            make = partial(fresh_tensor, key, shape, seed, self._language.layers)
            yield Piece(key, shape, (0,) * len(shape), shape, self._dtype or dtype, make)

    def _piece(self, rule: Rule, layer: int | None, source: TensorSource, names: tuple[str, ...], make: Make) -> Piece:
        language = self._language
        shape, key = rule.shape(language), megatron_key(rule, layer)
        dtype = self._dtype_of(source, names)
        where = key if layer is None else f"{key}[{layer}]"
        self._report.rows.append(TensorRow(where, "mapped", names, shape, _name(dtype)))
        if self._dtypes.setdefault(key, dtype) != dtype:
            raise _mixed(names, {dtype, self._dtypes[key]})
        zeros = (0,) * len(shape)
        if layer is None:
            return Piece(key, shape, zeros, shape, dtype, make)
        return Piece(key, (language.layers, *shape), (layer, *zeros), (1, *shape), dtype, make)

    def _vocabulary_pieces(self, rule: Rule, source: TensorSource, name: str) -> Iterator[Piece]:
        """Rows of the source, fresh rows for the tokens it has none for, and rows of zeros up to the padded size."""
        language, dtype = self._language, self._dtype_of(source, (name,))
        # [h] of a matrix's rows, nothing of a bias's.
        row, padded = tuple(source.shapes[name][1:]), language.padded_vocabulary_size
        there = min(source.shapes[name][0], language.vocabulary_size)
        fresh = language.vocabulary_size - there
        self._report.rows.append(TensorRow(rule.key, "mapped", (name,), (there, *row), _name(dtype)))
        if fresh:
            where = f"{rule.key}[{there}:{language.vocabulary_size}]"
            self._report.rows.append(TensorRow(where, "fresh", (), (fresh, *row), _name(dtype)))
        block = max(1, _BLOCK_BYTES // (prod(row) * dtype.itemsize))
        mean = cache(partial(_mean_row, source, name, there, block))
        for start in range(0, padded, block):
            end = min(start + block, padded)

            def make(start: int = start, end: int = end) -> Tensor:
                rows = [source.read(name, slice(start, min(end, there)))] if start < there else []
                count = min(end, language.vocabulary_size) - max(start, there)
                if count > 0:
                    rows.append(mean().to(dtype).expand(count, *row))
                rows.append(torch.zeros(end - start - sum(map(len, rows)), *row, dtype=dtype))
                return torch.cat(rows)

            yield Piece(rule.key, (padded, *row), (start, *(0 for _ in row)), (end - start, *row), dtype, make)

    def _dtype_of(self, source: TensorSource, names: tuple[str, ...]) -> torch.dtype:
        if self._dtype is not None:
            return self._dtype
        dtypes = {source.dtype(name) for name in names}
        if len(dtypes) > 1:
            raise _mixed(names, dtypes)
        return dtypes.pop()


def _merged(rule: Rule, source: TensorSource, names: tuple[str, ...], language: LanguageArchitecture) -> Tensor:
    return rule.merge([source.read(name) for name in names], language)


def _mixed(names: tuple[str, ...], dtypes: set[torch.dtype]) -> ConversionError:
    return ConversionError(
        f"{', '.join(names)}: found {', '.join(sorted(map(_name, dtypes)))} where one tensor holds all "
        "layers and parts; choose one with --dtype"
    )


def _mean_row(source: TensorSource, name: str, rows: int, block: int) -> Tensor:
    """The mean of a vocabulary's rows: as an output row, with the mean bias, it never has the highest logit."""
    total = torch.zeros(tuple(source.shapes[name][1:]), dtype=torch.float64)
    for start in range(0, rows, block):
        total += source.read(name, slice(start, min(start + block, rows))).sum(0, dtype=torch.float64)
    return total / rows


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
