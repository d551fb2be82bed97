"""A rank's chunk of a tensor that holds whole sequences. Apart from sequence.py, which planning uses without torch."""

import torch
from torch import Tensor

from megatron_sts.parallel.sequence import Ranges


def take(rows: Tensor, ranges: Ranges) -> Tensor:
    """[b, s] -> the positions of the ranges, one after another, [b, sum of their lengths]."""
    if ranges == ((0, rows.size(1)),):
        return rows
    return torch.cat([rows[:, start:end] for start, end in ranges], dim=1)


def places_in(ranges: Ranges, positions: Tensor) -> Tensor:
    """Of each position its place in the chunk that the ranges [start, end) make up, which ascend; -1 outside."""
    starts, ends = (torch.tensor(bounds, device=positions.device) for bounds in zip(*ranges, strict=True))
    lengths = ends - starts
    nearest = torch.bucketize(positions, starts, right=True) - 1
    held = nearest.clamp_min(0)
    places = positions - starts[held] + (lengths.cumsum(0) - lengths)[held]
    return torch.where((nearest >= 0) & (positions < ends[held]), places, -1)
