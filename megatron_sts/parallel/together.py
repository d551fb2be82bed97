"""What all ranks do as one: an error of one is raised by all, so that none is left waiting."""

from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from megatron_sts.errors import MegatronStsError


def rank_zero_does(action: Callable[[], None]) -> None:
    """Rank 0 acts while the others wait; an error of the project that it raises is raised by all."""
    outcome: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            action()
        except MegatronStsError as error:
            outcome = [error]
    dist.broadcast_object_list(outcome, src=0)
    if outcome[0] is not None:
        raise outcome[0]


def from_all_ranks(own: Any) -> list[Any]:
    """What each rank hands in, by rank, on every rank; alone where there are no process groups."""
    if not dist.is_initialized():
        return [own]
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, own)
    return gathered


def to_rank_zero(own: Any) -> list[Any] | None:
    """What each rank hands in, by rank, on rank 0; None on the others, which keep no copy of it."""
    gathered: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(own, gathered)
    return gathered


def told_by_any(problem: str | None) -> str | None:
    """What went wrong on any rank, with its number, the same text on all; None where nothing did."""
    told = [f"rank {rank}: {text}" for rank, text in enumerate(from_all_ranks(problem)) if text is not None]
    return "; ".join(told) or None


def own_part() -> tuple[int, int]:
    """(rank, number of ranks) for sharing work out over all of them; (0, 1) where there are no process groups."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
