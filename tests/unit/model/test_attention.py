"""Shows that the plain attention core is causal softmax attention, grouped queries included."""

import math

import pytest
import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_sts.model.attention import CausalAttention

LENGTH, BATCH, HEADS, SIZE = 5, 2, 4, 3


def core() -> CausalAttention:
    config = TransformerConfig(num_layers=1, hidden_size=HEADS * SIZE, num_attention_heads=HEADS, kv_channels=SIZE)
    return CausalAttention(config, 1, AttnMaskType.causal, "self")


@pytest.mark.parametrize("groups", [4, 2, 1])
def test_attention_is_causal_softmax_attention(groups):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(LENGTH, BATCH, HEADS, SIZE, generator=generator)
    key, value = (torch.randn(LENGTH, BATCH, groups, SIZE, generator=generator) for _ in range(2))
    expected = torch.empty(LENGTH, BATCH, HEADS * SIZE)
    for row in range(BATCH):
        for head in range(HEADS):
            group = head * groups // HEADS
            for now in range(LENGTH):
                scores = key[: now + 1, row, group] @ query[now, row, head] / math.sqrt(SIZE)
                seen = scores.softmax(0) @ value[: now + 1, row, group]
                expected[now, row, head * SIZE : (head + 1) * SIZE] = seen
    torch.testing.assert_close(core()(query, key, value, None), expected, rtol=1e-5, atol=1e-6)


def test_packed_samples_attend_to_themselves_alone():
    generator = torch.Generator().manual_seed(1)
    lengths = (3, 1, 4)
    query = torch.randn(sum(lengths), HEADS, SIZE, generator=generator)
    key, value = (torch.randn(sum(lengths), 2, SIZE, generator=generator) for _ in range(2))
    row = PackedSeqParams(qkv_format="thd", cu_seqlens_q=torch.tensor([0, 3, 4, 8], dtype=torch.int32))
    packed = core()(query, key, value, None, packed_seq_params=row)
    start = 0
    for length in lengths:
        own = slice(start, start + length)
        alone = core()(query[own, None], key[own, None], value[own, None], None)
        torch.testing.assert_close(packed[own], alone[:, 0], rtol=1e-6, atol=1e-6)
        start += length
