"""Moves rows between the ranks of a group: each row once, to the rank that owns it, or every row to all.

Shapes: r rows held, w their width.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def own_share(count: int, rank: int, size: int) -> range:
    """The part of `count` things that a rank works on: neighbours, as even as can be, in the order of the ranks."""
    return range(rank * count // size, (rank + 1) * count // size)


def send_to_owners(rows: Tensor, sent: Sequence[int], received: Sequence[int], group: dist.ProcessGroup) -> Tensor:
    """rows [r, w] in the order of their owners, `sent[i]` of them to rank i -> the own rows, `received[i]` from rank i.

    Differentiable: gradients go back the same way. Contract: all ranks of the group call it, and where the rows of
    one need a gradient those of all do, since the way back is a collective too.
    """
    moved: Tensor = _SendToOwners.apply(rows, list(sent), list(received), group)
    return moved


class _SendToOwners(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup) -> Tensor:
        ctx.sent, ctx.received, ctx.group = sent, received, group
        return _all_to_all(rows, sent, received, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return _all_to_all(gradients[0], ctx.received, ctx.sent, ctx.group), None, None, None


def _all_to_all(rows: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup) -> Tensor:
    assert rows.size(0) == sum(sent)
    moved = rows.new_empty(sum(received), *rows.shape[1:])
    dist.all_to_all_single(moved, rows.contiguous(), received, sent, group=group)
    return moved


def gather_from_all(rows: Tensor, counts: Sequence[int], group: dist.ProcessGroup) -> Tensor:
    """rows [r, w], `counts[i]` of them on rank i -> those of all ranks, on every rank.

    Differentiable where every rank computes the same with what it gets, as tensor parallelism without sequence
    parallelism does. Contract: what made the rows has its gradients *averaged* over the group (model/build.py), so the
    gradient of a row is handed back times the number of ranks, and their average is the sum of the shares.
    """
    gathered: Tensor = _GatherFromAll.apply(rows, list(counts), group)
    return gathered


class _GatherFromAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: list[int], group: dist.ProcessGroup) -> Tensor:
        ctx.start, ctx.count, ctx.ranks = sum(counts[: group.rank()]), rows.size(0), len(counts)
        # Gathering pads to the longest; ranks hold at most one image more than others.
        longest = max(counts)
        padded = rows.new_zeros(longest, *rows.shape[1:])
        padded[: rows.size(0)] = rows
        gathered = rows.new_empty(len(counts) * longest, *rows.shape[1:])
        dist.all_gather_into_tensor(gathered, padded, group=group)
        return torch.cat([gathered[rank * longest :][:count] for rank, count in enumerate(counts)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0][ctx.start : ctx.start + ctx.count] * ctx.ranks, None, None
