"""What all ranks do as one: an error of one is raised by all, so that none is left waiting."""

import contextlib
import time
import uuid
from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from megatron_sts.errors import MegatronStsError

_CALLS = "calls"
_ENDED = "ended"
# Between two looks at the store: of the time waited so far, and at most.
_PAUSE_SHARE = 0.1
_LONGEST_PAUSE_SECONDS = 1.0


def rank_zero_does(action: Callable[[], None]) -> None:
    """Rank 0 acts while the others wait; an error of the project that it raises is raised by all."""
    outcome: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            action()
        except MegatronStsError as error:
            error.met_by_all = True
            outcome = [error]
    dist.broadcast_object_list(outcome, src=0)
    if outcome[0] is not None:
        raise outcome[0]


def rank_zero_works(work: Callable[[Callable[[], None]], None], patience: float) -> None:
    """As `rank_zero_does`, for work that may take longer than a collective waits.

    work: given a function that it calls as it gets on. The others wait outside of any collective for as long as no
    more than `patience` seconds pass between two calls; then inside one, whose own timeout ends them.
    """
    name = [uuid.uuid4().hex]
    dist.broadcast_object_list(name, src=0)
    # A connection of its own: those that libraries hold must not be kept waiting.
    store = dist.PrefixStore(f"megatron_sts/{name[0]}", _get_default_store().clone())  # type: ignore[attr-defined]

    # What has become of a lost store, or of rank 0, is told where a collective fails.
    lost = contextlib.suppress(dist.DistError)

    def gets_on() -> None:
        with lost:
            store.add(_CALLS, 1)

    def action() -> None:
        try:
            work(gets_on)
        finally:
            with lost:
                store.set(_ENDED, "")

    if dist.get_rank() != 0:
        with lost:
            _wait_while_it_gets_on(store, patience)
    rank_zero_does(action)


def _wait_while_it_gets_on(store: dist.Store, patience: float) -> None:
    began = moved = time.monotonic()
    calls = 0
    while not store.check([_ENDED]):
        now, found = time.monotonic(), store.add(_CALLS, 0)
        if found != calls:
            calls, moved = found, now
        if now - moved > patience:
            return
        time.sleep(min(_LONGEST_PAUSE_SECONDS, 0.001 + _PAUSE_SHARE * (now - began)))


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
