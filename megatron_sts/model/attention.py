"""The attention core of the plain layer spec."""

import math
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor


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
        **_: Any,
    ):
        super().__init__()
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
        """query [s, b, a, d], key and value [s, b, g, d] -> [s, b, a * d]; a query heads, g groups of size d.

        With packed_seq_params without b, in and out; each of its segments attends to itself alone.
        """
        if packed_seq_params is None:
            return self._attend(query, key, value)
        ends = packed_seq_params.cu_seqlens_q.tolist()
        lengths = [end - start for start, end in pairwise(ends)]
        parts = (tensor.unsqueeze(1).split(lengths) for tensor in (query, key, value))
        return torch.cat([self._attend(*part) for part in zip(*parts, strict=True)]).squeeze(1)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query, key, value = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))
        output = F.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=self.softmax_scale, enable_gqa=query.size(1) != key.size(1)
        )
        return output.permute(2, 0, 1, 3).flatten(2).contiguous()
