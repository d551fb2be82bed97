"""A rank's chunk of a tensor that holds whole sequences. Apart from sequence.py, which planning uses without torch."""

import torch
from torch import Tensor


def take(rows: Tensor, ranges: tuple[tuple[int, int], ...]) -> Tensor:
    """[b, s] -> the positions of the ranges, one after another, [b, sum of their lengths]."""
    if ranges == ((0, rows.size(1)),):
        return rows
    return torch.cat([rows[:, start:end] for start, end in ranges], dim=1)
