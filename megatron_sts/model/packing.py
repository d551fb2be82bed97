"""How megatron-core and Transformer Engine are told of samples that lie end to end in one row."""

from collections.abc import Sequence
from itertools import accumulate

import torch
from megatron.core.packed_seq_params import PackedSeqParams


def packed_parameters(segments: Sequence[int]) -> PackedSeqParams:
    """The parameters of a row whose samples, and padding behind them, have these lengths.

    The longest segment, not the row, is the greatest length: megatron-core makes so many rotary positions, and where
    they are as many as the row has it would not begin anew at each segment.
    """
    # Made on the CPU first: written to a GPU at once, it would be waited for in every micro-batch.
    ends = torch.tensor([0, *accumulate(segments)], dtype=torch.int32, device="cpu")
    ends = ends.to(torch.cuda.current_device(), non_blocking=True)
    longest = max(segments)
    return PackedSeqParams(
        qkv_format="thd", cu_seqlens_q=ends, cu_seqlens_kv=ends, max_seqlen_q=longest, max_seqlen_kv=longest
    )
