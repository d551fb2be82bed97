"""When a run stops before its end: a signal, or the time it was given. All ranks stop after the same step."""

import os
import signal
import time
from enum import IntEnum
from types import FrameType, TracebackType
from typing import Any, Self

import psutil

from megatron_sts.config import Recipe
from megatron_sts.stop_signals import STOP_SIGNALS


class StopReason(IntEnum):
    """Why a run stops before its end; the higher one is told where ranks have several."""

    NONE = 0
    TIME = 1
    SIGNAL = 2

    @property
    def text(self) -> str:
        """For a person to read."""
        return {0: "", 1: "the time of stop_after is over", 2: "a rank was sent a signal"}[self.value]


class StopRequests:
    """What this rank was asked, while the context lasts: SIGINT (Ctrl-C), SIGTERM and SIGUSR1 wish for a stop after
    the step.

    A second signal ends the process at once, as if it had never been caught. Only the main thread may enter.
    """

    def __init__(self, recipe: Recipe):
        self._signalled = False
        self._process = os.getpid()
        self._earlier: dict[int, Any] = {}
        self._ends_at = float("inf")
        if recipe.stop_after is not None:
            age = time.time() - psutil.Process().create_time()
            self._ends_at = time.monotonic() - age + recipe.stop_after.seconds

    def __enter__(self) -> Self:
        for number in STOP_SIGNALS:
            self._earlier[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, earlier in self._earlier.items():
            # torchrun sends SIGTERM to the ranks that are left when the first has ended; these are at their end too.
            signal.signal(number, signal.SIG_IGN if self._signalled else earlier)

    def reason(self) -> StopReason:
        """Why this rank wishes to stop now."""
        if self._signalled:
            return StopReason.SIGNAL
        return StopReason.TIME if time.monotonic() >= self._ends_at else StopReason.NONE

    def _note(self, number: int, frame: FrameType | None) -> None:
        for other in STOP_SIGNALS:
            signal.signal(other, signal.SIG_DFL)
        if os.getpid() != self._process:
            # A process that this rank forked, to load images or to write: the signal is not for it to interpret.
            os.kill(os.getpid(), number)
        self._signalled = True
