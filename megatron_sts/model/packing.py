"""How megatron-core and Transformer Engine are told of samples that lie end to end in one row."""

from collections.abc import Sequence
from itertools import accumulate

import torch
from megatron.core.packed_seq_params import PackedSeqParams

from megatron_sts.parallel.device import to_device
from megatron_sts.parallel.sequence import sample_multiple


def packed_parameters(segments: Sequence[int], context_size: int = 1) -> PackedSeqParams:
    """The parameters of a row whose samples, and padding behind them, have these lengths.

    The longest segment, not the row, is the greatest length: megatron-core makes so many rotary positions, and where
    they are as many as the row has it would not begin anew at each segment. Under context parallelism lengths are those
    of the whole row, of which a rank holds its chunks of every segment (`own_ranges`); Transformer Engine then wants to
    be told of padding also where, as here, all of it counts as the samples' own.
    """
    assert all(length % sample_multiple(context_size) == 0 for length in segments)
    # Made on the CPU first: written to a GPU at once, it would be waited for in every micro-batch.
    ends = torch.tensor([0, *accumulate(segments)], dtype=torch.int32, device="cpu")
    ends = to_device(ends, torch.cuda.current_device())
    longest = max(segments)
    padded = ends if context_size > 1 else None
    return PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=ends,
        cu_seqlens_kv=ends,
        cu_seqlens_q_padded=padded,
        cu_seqlens_kv_padded=padded,
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
    )
