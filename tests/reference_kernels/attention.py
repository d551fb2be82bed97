"""Causal attention as cuDNN's fused kernels have it: of whole sequences [s, b, a, d] and of packed rows [t, a, d]."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from tests.reference_kernels.names import DType
from tests.reference_kernels.names import NVTE_Fused_Attn_Backend as Backend

_WHOLE = "NVTE_SBHD_SBHD_SBHD"
_PACKED = "NVTE_THD_THD_THD"


def get_fused_attn_backend(is_training: bool, query_type: int, key_type: int, layout: Any, *rest: Any) -> Any:
    """cuDNN's backend for sequences of any length, which takes 16-bit numbers; none for others."""
    takes = query_type in (DType.kFloat16, DType.kBFloat16)
    return Backend.NVTE_F16_arbitrary_seqlen if takes else Backend.NVTE_No_Backend


def fused_attn_fwd(
    max_query: int,
    max_key: int,
    is_training: bool,
    scale: float,
    dropout: float,
    zero_fill: bool,
    layout: Any,
    bias_type: Any,
    mask_type: Any,
    softmax_type: Any,
    window: Any,
    query_ends: Tensor,
    key_ends: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dtype: torch.dtype,
    query_ends_padded: Tensor | None,
    key_ends_padded: Tensor | None,
    *rest: Any,
) -> list[Tensor]:
    """[output, logarithms of the softmax's sums [b, a, s, 1], packed [t, a, 1], state of the generator]."""
    assert dropout == 0.0
    output = torch.zeros_like(query)
    sums = query.new_full(query.shape[:-1], -math.inf, dtype=torch.float32)
    for queries, keys in _samples(layout, query, query_ends, key_ends, query_ends_padded, key_ends_padded):
        scores = _scores(query[queries], key[keys], scale, mask_type)
        sums[queries] = torch.logsumexp(scores, -1).permute(2, 0, 1).view(sums[queries].shape)
        output[queries] = _weigh(torch.softmax(scores, -1), value[keys]).to(output.dtype)
    statistics = (sums if layout.name == _PACKED else sums.permute(1, 2, 0)).unsqueeze(-1).contiguous()
    return [output, statistics, torch.zeros(2, dtype=torch.int64)]


def fused_attn_bwd(
    max_query: int,
    max_key: int,
    scale: float,
    dropout: float,
    zero_fill: bool,
    layout: Any,
    bias_type: Any,
    mask_type: Any,
    softmax_type: Any,
    window: Any,
    deterministic: bool,
    query_ends: Tensor,
    key_ends: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    gradient: Tensor,
    dtype: torch.dtype,
    gradient_type: int,
    saved: list[Tensor],
    query_ends_padded: Tensor | None,
    key_ends_padded: Tensor | None,
    *rest: Any,
) -> list[Tensor | None]:
    """[gradients of query, key and value, and of the bias and the sink that are not there].

    From the output and the sums over all keys, of which these may be a part.
    """
    assert dropout == 0.0
    gradients = [torch.zeros_like(tensor) for tensor in (query, key, value)]
    sums = saved[0].squeeze(-1)
    sums = sums if layout.name == _PACKED else sums.permute(2, 0, 1)
    for queries, keys in _samples(layout, query, query_ends, key_ends, query_ends_padded, key_ends_padded):
        group = query.size(-2) // key.size(-2)
        scores = _scores(query[queries], key[keys], scale, mask_type)
        weights = torch.exp(scores - _heads_first(sums[queries].unsqueeze(-1)))
        of_output, held = _heads_first(gradient[queries]), _heads_first(output[queries])
        of_weights = of_output @ _heads_first(value[keys], group).mT
        of_scores = weights * (of_weights - (of_output * held).sum(-1, keepdim=True)) * scale
        found = (
            of_scores @ _heads_first(key[keys], group),
            _one_of_group(of_scores.mT @ _heads_first(query[queries]), group),
            _one_of_group(weights.mT @ of_output, group),
        )
        for target, rows, part in zip(gradients, (queries, keys, keys), found, strict=True):
            target[rows] = part.permute(2, 0, 1, 3).view(target[rows].shape).to(target.dtype)
    return [*gradients, None, None]


def _samples(
    layout: Any,
    query: Tensor,
    query_ends: Tensor,
    key_ends: Tensor,
    query_ends_padded: Tensor | None,
    key_ends_padded: Tensor | None,
) -> Iterator[tuple[slice, slice]]:
    """(rows of the queries, rows of the keys) of what attends to itself: all, or each sample of packed rows."""
    if layout.name == _WHOLE:
        yield slice(None), slice(None)
        return
    if layout.name != _PACKED:
        raise NotImplementedError(f"fused attention of {layout.name}")
    of_queries = _rows(query_ends, query_ends_padded)
    yield from zip(of_queries, _rows(key_ends, key_ends_padded), strict=True)


def _rows(ends: Tensor, padded: Tensor | None) -> list[slice]:
    starts = (ends if padded is None else padded).tolist()
    return [slice(start, start + length) for start, length in zip(starts, ends.diff().tolist(), strict=False)]


def _scores(query: Tensor, key: Tensor, scale: float, mask_type: Any) -> Tensor:
    """[b, a, s, S]; where the mask is causal, a query sees the keys up to its own place."""
    scores = _heads_first(query) @ _heads_first(key, query.size(-2) // key.size(-2)).mT * scale
    if mask_type.name in ("NVTE_NO_MASK", "NVTE_PADDING_MASK"):
        return scores
    if mask_type.name not in ("NVTE_CAUSAL_MASK", "NVTE_PADDING_CAUSAL_MASK"):
        raise NotImplementedError(f"fused attention with {mask_type.name}")
    seen = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    return scores.masked_fill(~seen, -math.inf)


def _heads_first(tensor: Tensor, repeats: int = 1) -> Tensor:
    """[s, b, a, d], or packed [t, a, d] -> fp32 [b, a, s, d], each head of keys for as many heads of queries."""
    if tensor.dim() == 3:
        tensor = tensor.unsqueeze(1)
    return tensor.detach().float().permute(1, 2, 0, 3).repeat_interleave(repeats, 1)


def _one_of_group(tensor: Tensor, group: int) -> Tensor:
    """Sums over the query heads that share a head of keys: [b, a, s, d] -> [b, a / group, s, d]."""
    return tensor.unflatten(1, (-1, group)).sum(2)


def _weigh(weights: Tensor, value: Tensor) -> Tensor:
    output = weights @ _heads_first(value, weights.size(1) // value.size(-2))
    output = output.permute(2, 0, 1, 3)
    return output if value.dim() == 4 else output.squeeze(1)
