"""Moves rows between the ranks of a group: each row to the rank, or the ranks, that need it.

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


def deal_evenly(counts: Sequence[int]) -> list[list[int]]:
    """How many of its `counts[i]` things rank i gives to rank j, so that each ends up with its `own_share` of them all.

    [i][i] are those that stay; no more move than must.
    """
    ranks, total = range(len(counts)), sum(counts)
    shares = [len(own_share(total, rank, len(counts))) for rank in ranks]
    given = [[min(counts[i], shares[i]) if i == j else 0 for j in ranks] for i in ranks]
    room = [share - min(count, share) for count, share in zip(counts, shares, strict=True)]
    for giver, count in enumerate(counts):
        left = count - given[giver][giver]
        for taker in ranks:
            moved = min(left, room[taker])
            given[giver][taker] += moved
            room[taker] -= moved
            left -= moved
    return given


def send_to_owners(rows: Tensor, sent: Sequence[int], received: Sequence[int], group: dist.ProcessGroup) -> Tensor:
    """rows [r, w] in the order of the ranks they go to, `sent[i]` of them to rank i -> `received[i]` from each rank i.

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
