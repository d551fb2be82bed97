"""The attention core of the plain layer spec, which shares a sequence out over context-parallel ranks by itself.

Shapes: s positions held by this rank, S of the whole sequence, c context-parallel ranks, b micro-batch, a query heads,
g groups of size d.
"""

import math
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_sts.parallel.sequence import own_ranges


class CausalAttention(torch.nn.Module):
    """Causal attention by torch's scaled_dot_product_attention, grouped queries included.

    Sequences are padded on the right, so causality alone keeps padding out and no mask is needed.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        softmax_scale: float | None = None,
        pg_collection: ProcessGroupCollection | None = None,
        **_: Any,
    ):
        super().__init__()
        self.context = None if config.context_parallel_size == 1 or pg_collection is None else pg_collection.cp
        assert attn_mask_type == AttnMaskType.causal
        head_size = config.kv_channels
        assert head_size is not None
        self.softmax_scale = softmax_scale or 1.0 / math.sqrt(head_size)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        packed_seq_params: PackedSeqParams | None = None,
        **_: Any,
    ) -> Tensor:
        """query [s, b, a, d], key and value [s, b, g, d] -> [s, b, a * d].

        With packed_seq_params, of a row of packed samples, without b, in and out: each segment attends to itself alone.
        """
        if packed_seq_params is None:
            return self._attend(query, *self._gathered(key, value))
        query, key, value = (tensor.unsqueeze(1) for tensor in (query, key, value))
        key, value = self._gathered(key, value)
        bounds = packed_seq_params.cu_seqlens_q.tolist()
        lengths = [(end - start) // key.size(0) for start, end in pairwise(bounds)]
        parts = (query.split(lengths), key.split(lengths, dim=1), value.split(lengths, dim=1))
        return torch.cat([self._attend(*part) for part in zip(*parts, strict=True)]).squeeze(1)

    def _gathered(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [s, b, g, d] -> those of every context-parallel rank [c, s, b, g, d], in one transfer.

        In the backward pass their gradients are summed over the ranks, each for its own positions.
        """
        if self.context is None:
            return key.unsqueeze(0), value.unsqueeze(0)
        both = gather_from_sequence_parallel_region(torch.cat([key, value], dim=2), group=self.context)
        key, value = both.unflatten(0, (self.context.size(), -1)).chunk(2, dim=3)
        return key, value

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """query [s, b, a, d], key and value [c, s, b, g, d], of one segment -> [s, b, a * d]."""
        seen = None
        if self.context is not None:
            seen = _seen(key.size(0) * key.size(1), self.context.rank(), self.context.size(), key.device)
        key, value = key.flatten(0, 1), value.flatten(0, 1)
        query, key, value = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))
        output = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=seen,
            is_causal=seen is None,
            scale=self.softmax_scale,
            enable_gqa=query.size(1) != key.size(1),
        )
        return output.permute(2, 0, 1, 3).flatten(2).contiguous()


def _seen(length: int, rank: int, size: int, device: torch.device) -> Tensor:
    """[s, S] whether a position of this rank sees a gathered one of the same segment: it stands there or later.

    Contract: ranks hold the positions of each segment that parallel.sequence.own_ranges says, in that order.
    """
    held = [
        torch.cat(
            [torch.arange(start, end, device=device) for start, end in own_ranges((length,), 0, 1, of_rank, size)]
        )
        for of_rank in range(size)
    ]
    return held[rank][:, None] >= torch.cat(held)
