"""Watches over the other ranks: who is lost, who hangs, and where this rank waits for them.

Every rank has a thread that now and then writes a sign of life to the store of the process group: a count, the step,
and where its main thread is. A lost rank stops writing; a rank that hangs keeps writing that it is somewhere else than
in the collective in which the others wait. Nothing is added to a step.
"""

import json
import os
import sys
import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from megatron_sts.errors import MegatronStsError
from megatron_sts.exit_codes import LOST_RANK
from megatron_sts.parallel.groups import Place

_PREFIX = "megatron_sts/watchdog"
_SECONDS_BETWEEN_SIGNS = 2.0
_SIGNS_IN_TIMEOUT = 10
# Where a rank can wait for others; torch names the collective, megatron-core's files wait for what they began before.
_COLLECTIVES = (
    "torch.distributed.distributed_c10d",
    "torch.distributed.c10d_logger",
    "megatron.core.pipeline_parallel.p2p_communication",
    "megatron.core.distributed.param_and_grad_buffer",
)
# Where a rank waits for its device, and by it for the others: a collective of NCCL itself only starts a kernel.
_WAITS_FOR_DEVICE = (
    "megatron_sts.parallel.device",
    "megatron_sts.train.quarantine",
    "megatron_sts.train.step",
)
# How long a rank whose collective failed looks for the one that is to blame: some signs of life.
_SIGNS_TO_EXPLAIN = 4
# A frame that stands still for longer than the collective's own timeout will not go on.
_GRACE_SECONDS = 3.0


@dataclass(frozen=True)
class SignOfLife:
    """What a rank last wrote. count: of its signs. state: runs; gives up,
    because it waited in vain; failed, by an error of its own; done."""

    count: int
    layout: str
    reached: str
    where: str
    waits: bool
    state: str


class Watchdog:
    """Watches while the context lasts; a context left by a collective's failure ends the process with LOST_RANK.

    timeout: seconds without a sign of life after which a rank counts as lost, and in which a collective must end.
    """

    def __init__(self, place: Place, timeout: float):
        self._rank, self._world_size = place.rank, place.world_size
        self._layout = f"tensor {place.tensor_rank}, pipeline {place.pipeline_rank}, data {place.data_rank}"
        self._timeout = timeout
        self._interval = min(_SECONDS_BETWEEN_SIGNS, timeout / _SIGNS_IN_TIMEOUT)
        self._main = threading.main_thread().ident
        self._reached = "before the first step"
        self._state = "runs"
        self._count = 0
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._signs: dict[int, tuple[SignOfLife, float]] = {}
        self._store_failed_at: float | None = None
        self._stands_still_since = time.monotonic()
        self._stands: Any = None

    def __enter__(self) -> Self:
        if self._world_size > 1:
            store = _get_default_store().clone()  # type: ignore[attr-defined]
            store.set_timeout(timedelta(seconds=max(1.0, self._interval)))
            self._store = dist.PrefixStore(_PREFIX, store)
            # Before the first step: a rank that is lost at once has been seen.
            self._beat()
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is None:
            return
        where = _collective_of(trace)
        if error is not None and where is not None and not isinstance(error, MegatronStsError):
            self._explain(error, where)
        self._state = "done" if error is None else "failed"
        self._ended.set()
        self._thread.join(self._interval)

    def reached(self, step: str) -> None:
        """Note which step the main thread has begun."""
        self._reached = step

    # ------------------------------------------------------------------------------------------ the thread

    def _watch(self) -> None:
        while not self._ended.wait(self._interval):
            self._beat()
            self._look_around()
            self._end_where_nothing_moves()
        self._beat()

    def _beat(self) -> None:
        frame = sys._current_frames().get(self._main) if self._main is not None else None
        waits, where = _place_in_code(frame)
        self._note_movement((self._reached, where, id(frame), frame.f_lasti if frame is not None else 0))
        self._count += 1
        sign = SignOfLife(self._count, self._layout, self._reached, where, waits, self._state)
        try:
            self._store.set(str(self._rank), json.dumps(sign.__dict__))
        except Exception:
            # The store tells of its loss in many types.
            self._store_failed_at = self._store_failed_at or time.monotonic()

    def _note_movement(self, stands: Any) -> None:
        if stands != self._stands:
            self._stands, self._stands_still_since = stands, time.monotonic()

    def _look_around(self) -> None:
        """Read the others' signs, but only where this rank stands still: a running step shows that all are there."""
        if time.monotonic() - self._stands_still_since < 2 * self._interval and self._state == "runs":
            # What was seen long ago must not count as silence.
            self._signs.clear()
            return
        now = time.monotonic()
        try:
            known = [rank for rank in range(self._world_size) if self._store.check([str(rank)])]
            texts = self._store.multi_get([str(rank) for rank in known])
        except Exception:
            self._store_failed_at = self._store_failed_at or time.monotonic()
            return
        for rank, text in zip(known, texts, strict=True):
            sign = SignOfLife(**json.loads(text))
            if rank not in self._signs or self._signs[rank][0].count != sign.count:
                self._signs[rank] = (sign, now)

    def _end_where_nothing_moves(self) -> None:
        if self._state != "runs":
            # The main thread is about to end by itself, and knows better where it waited.
            return
        silent = {rank: age for rank, age in self._silence().items() if age > self._timeout}
        stands = time.monotonic() - self._stands_still_since
        waits, where = _place_in_code(sys._current_frames().get(self._main) if self._main is not None else None)
        if silent or (waits and stands > self._timeout + _GRACE_SECONDS):
            self._end(self._report(where, silent))

    # ------------------------------------------------------------------------------------------ the end

    def _explain(self, error: BaseException, where: str) -> None:
        """A collective failed: see who has fallen silent, say so, and end."""
        self._state = "gives up"
        time.sleep(self._interval * _SIGNS_TO_EXPLAIN)
        silent = {rank: age for rank, age in self._silence().items() if age > 2.5 * self._interval}
        self._end(f"{self._report(where, silent)}\n({type(error).__name__}: {error})")

    def _silence(self) -> dict[int, float]:
        """Seconds since the last sign of each other rank whose signs were read; not of those that are done."""
        now = time.monotonic()
        return {
            rank: now - seen
            for rank, (sign, seen) in list(self._signs.items())
            if rank != self._rank and sign.state == "runs"
        }

    def _report(self, where: str, silent: dict[int, float]) -> str:
        lines = [
            f"rank {rank} ({self._signs[rank][0].layout}) has not answered for {age:.0f} s "
            f"(last seen: {self._signs[rank][0].reached}, {self._signs[rank][0].where})"
            for rank, age in sorted(silent.items())
        ]
        if not lines:
            lines = [
                f"rank {rank} ({sign.layout}) answers, but is elsewhere: {sign.reached}, {sign.where}"
                for rank, (sign, _) in sorted(self._signs.copy().items())
                if rank != self._rank and sign.state == "runs" and not sign.waits
            ]
        if not lines:
            lines = [
                f"rank {rank} ({sign.layout}) ended with an error of its own, at {sign.reached}"
                for rank, (sign, _) in sorted(self._signs.copy().items())
                if sign.state == "failed"
            ]
        if not lines and self._signs:
            unseen = sorted(set(range(self._world_size)) - set(self._signs))
            lines = [f"rank {rank} has never given a sign of life" for rank in unseen]
        if not lines and self._store_failed_at is not None:
            lines = [
                "the process that holds the store of the process group (torchrun on the first node, else rank 0) "
                f"has not answered for {time.monotonic() - self._store_failed_at:.0f} s"
            ]
        return (
            "\n".join(lines or ["no rank was found to be lost"])
            + f"\nrank {self._rank} ({self._layout}) waits for it in {where}, {self._reached}, and ends"
        )

    def _end(self, text: str) -> None:
        """End this process at once: what waits in a collective can be ended in no other way."""
        print(f"error: {text}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(LOST_RANK)


def _place_in_code(frame: FrameType | None) -> tuple[bool, str]:
    """Whether a frame waits for other ranks, and where it is: in which collective, in which function of the models."""
    collective, caller = None, None
    while frame is not None and caller is None:
        module, name = frame.f_globals.get("__name__", ""), frame.f_code.co_name
        if module.startswith(_COLLECTIVES):
            # The outermost of the innermost run: broadcast_object_list, and not the broadcast in it.
            collective = f"{module.removesuffix('.distributed_c10d')}.{name}" if name != "wrapper" else collective
        elif module.startswith("megatron"):
            caller = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {name}"
            if collective is None and module in _WAITS_FOR_DEVICE:
                collective = "a wait for the device"
        frame = frame.f_back
    where = " called from ".join(part for part in (collective, caller) if part) or "code of no model"
    return collective is not None, where


def _collective_of(trace: TracebackType | None) -> str | None:
    """The collective that raised; None where the error came from elsewhere."""
    if trace is None:
        return None
    while trace.tb_next is not None:
        trace = trace.tb_next
    waits, where = _place_in_code(trace.tb_frame)
    return where if waits else None
