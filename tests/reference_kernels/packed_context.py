"""Packed rows under context parallelism, where a rank holds two chunks of every sample: halves of the samples, and how
partial results over a part of the keys are put together. `ends`: of this rank's part of the samples, in its rows."""

from itertools import pairwise

import torch
from torch import Tensor


def thd_read_half_tensor(tensor: Tensor, ends: Tensor, half: int) -> Tensor:
    """[.., t, a, d] -> [.., t / 2, a, d], the first or second half of every sample."""
    return tensor.index_select(tensor.dim() - 3, _half(ends, half))


def thd_read_second_half_lse(sums: Tensor, ends: Tensor, packed: bool, length: int) -> Tensor:
    """Logarithms of sums [a, t] -> those of the second halves [a, length]."""
    assert packed
    read = sums.new_zeros(sums.size(0), length)
    rows = _half(ends, 1)
    read[:, : rows.numel()] = sums[:, rows]
    return read


def thd_second_half_lse_correction(sums: Tensor, part: Tensor, ends: Tensor, packed: bool) -> None:
    """Adds the sums of further keys, which the second halves alone have seen: [a, t], [a, t / 2]."""
    assert packed
    rows = _half(ends, 1)
    sums[:, rows] = torch.logaddexp(sums[:, rows], part[:, : rows.numel()])


def thd_out_correction(
    output: Tensor, part: Tensor, sums: Tensor, part_sums: Tensor, ends: Tensor, second_half: bool, packed: bool
) -> None:
    """Adds to the output [t, a, d] a part of it, which was normalised by the sums of its own keys alone."""
    assert packed
    rows = _half(ends, 1) if second_half else torch.arange(int(ends[-1]))
    weight = (part_sums[:, : rows.numel()] - sums[:, rows]).exp().T.unsqueeze(-1)
    output[rows] += (part[: rows.numel()].float() * weight).to(output.dtype)


def thd_grad_correction(gradient: Tensor, part: Tensor, ends: Tensor, first: str, second: str) -> None:
    """Adds to or replaces the halves of a gradient [.., t, a, d]: none, copy or add each; part has those that are."""
    dim = gradient.dim() - 3
    halves = [_half(ends, half) for half, wanted in ((0, first), (1, second)) if wanted != "none"]
    sources = halves if len(halves) == 2 else [torch.arange(halves[0].numel())]
    for rows, source, wanted in zip(halves, sources, [w for w in (first, second) if w != "none"], strict=True):
        values = part.index_select(dim, source)
        if wanted == "add":
            values = values + gradient.index_select(dim, rows)
        gradient.index_copy_(dim, rows, values)


def _half(ends: Tensor, half: int) -> Tensor:
    """The rows of the first or second halves of all samples."""
    bounds = ends.tolist()
    middles = [(start + end) // 2 for start, end in pairwise(bounds)]
    starts, stops = (bounds[:-1], middles) if half == 0 else (middles, bounds[1:])
    return torch.cat([torch.arange(start, stop) for start, stop in zip(starts, stops, strict=True)])
