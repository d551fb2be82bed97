"""The bias of Phi's output layer, for which a LLaVA model of transformers has no place: it goes into the weight.

Behind a layer norm this is exact. The norm makes h = g z + c of some z whose entries sum to 0, so that the product of h
with u = 1 / g is k = sum(c / g) whatever was read, and with W' = W + b u^T / k

    W' h = W h + b (u . h) / k = W h + b.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from megatron_sts.config import LanguageArchitecture
from megatron_sts.errors import ConversionError
from megatron_sts.hf.families import OUTPUT, OUTPUT_BIAS
from megatron_sts.hf.source import TensorSource

(HEAD_BIAS,), (_HEAD,) = OUTPUT_BIAS.names, OUTPUT.names
_BLOCK_ROWS = 4096


def folded_head(weight: Tensor, bias: Tensor, norm_weight: Tensor, norm_bias: Tensor) -> Tensor:
    """weight [V, h] and bias [V] of a head, weight and bias [h] of the layer norm before it -> a weight [V, h] alone.

    The very weight where the bias is zero. Raises ConversionError for a norm that leaves no way to do so.
    """
    if not bias.any():
        return weight
    inverse = 1.0 / norm_weight.double()
    constant = (norm_bias.double() * inverse).sum()
    if not torch.isfinite(constant) or constant == 0:
        raise ConversionError(
            "the output layer has a bias, which a LLaVA model of transformers has no place for, and the norm before it "
            f"(weights with {int((norm_weight == 0).sum())} zeros, a bias of sum {float(norm_bias.sum()):.3g}) leaves "
            "no way to put it into the weight; train on, or set output_layer.bias to zero"
        )
    added = inverse / constant
    folded = torch.empty_like(weight)
    for start in range(0, len(weight), _BLOCK_ROWS):
        rows = slice(start, start + _BLOCK_ROWS)
        folded[rows] = weight[rows].double() + bias[rows, None].double() * added
    return folded


class WithHeadBias:
    """The language model of a LLaVA model, its head given a bias of zero."""

    def __init__(self, source: TensorSource, language: LanguageArchitecture):
        self._source = source
        self._rows = language.vocabulary_size

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Name and shape of every tensor."""
        return {**self._source.shapes, HEAD_BIAS: (self._rows,)}

    def dtype(self, name: str) -> torch.dtype:
        """The dtype a tensor is stored in; the bias has that of the head."""
        return self._source.dtype(_HEAD if name == HEAD_BIAS else name)

    def read(self, name: str, rows: slice = slice(None)) -> Tensor:
        """A tensor, or some rows of it."""
        if name == HEAD_BIAS:
            return torch.zeros(self._rows, dtype=self.dtype(name))[rows]
        return self._source.read(name, rows)


def with_head_bias(source: TensorSource, language: LanguageArchitecture) -> TensorSource:
    """The source, with a bias of the head where the language model has one and the source does not."""
    lacks = language.linear_bias and HEAD_BIAS not in source.shapes
    return WithHeadBias(source, language) if lacks else source
