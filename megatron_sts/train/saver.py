"""When a stage's checkpoints are saved: beside training, a bounded number at a time, and what a failed one means."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from megatron_sts.config import Recipe
from megatron_sts.errors import CheckpointError, TrainingError
from megatron_sts.train.checkpoint_save import CheckpointSave

# How long a process that ends by an error lets its thread finish the file that it writes.
_SECONDS_TO_END = 60.0


class Saver:
    """The checkpoints of one stage; a context, which an error leaves with what all ranks can still finish.

    All ranks call its methods at the same places. `is_at_work` is this rank's own; that no rank is at work is for the
    ranks to tell each other with what they exchange anyway, so that `advance` waits for nothing.
    """

    def __init__(self, recipe: Recipe, stage: str, state: Callable[[], dict[str, Any]], say: Callable[[str], None]):
        """state: makes the sharded state of now. say: tells the user, on the rank that speaks."""
        self._recipe, self._stage = recipe, stage
        self._state, self._say = state, say
        self._limit = recipe.checkpoint.max_unfinished if recipe.checkpoint.asynchronous else 0
        self._unfinished: deque[CheckpointSave] = deque()
        self._stalls: dict[int, float] = {}
        self._stall_since_asked = 0.0
        self._failed = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, TrainingError | CheckpointError):
            # Contract: while a stage trains these are raised by all ranks at the same place.
            while self._unfinished:
                try:
                    self._finish_oldest(is_needed=False)
                except CheckpointError as failure:
                    self._say(str(failure))
        for save in self._unfinished:
            save.wait_alone(_SECONDS_TO_END)

    def take_up(self, recipe: Recipe) -> None:
        """The checkpoints to come say that they were made under this recipe: what was measured for it is new."""
        self._recipe = recipe

    def is_at_work(self) -> bool:
        """Whether this rank is not ready to `advance` the oldest unfinished checkpoint."""
        return bool(self._unfinished) and self._unfinished[0].is_at_work

    def save(self, step: int, is_needed: bool, validation_loss: float | None = None) -> None:
        """Save what `step` steps have made. is_needed: what follows needs it, so that training waits until it is there.
        validation_loss: of these weights, where it was measured.

        Where as many as `checkpoint.max_unfinished` are not finished, waits for the oldest. Raises CheckpointError
        where it cannot be written and is needed, or `on_save_error` is stop.
        """
        waits = is_needed or self._limit == 0
        while len(self._unfinished) > (0 if waits else self._limit - 1):
            self._finish_oldest(is_needed=False)
        with self._standing_still(step), self._failures(step, is_needed):
            save = CheckpointSave(self._recipe, self._stage, step, self._state(), not waits, validation_loss)
            self._unfinished.append(save)
        if waits and self._unfinished:
            self._finish_oldest(is_needed)

    def advance(self) -> None:
        """Go on with the oldest unfinished checkpoint, if there is one; raises as `save`."""
        if not self._unfinished:
            return
        oldest = self._unfinished.popleft()
        with self._failures(oldest.step, is_needed=False):
            with self._standing_still(oldest.step):
                is_visible = oldest.advance()
            if is_visible:
                self._tell(oldest)
            else:
                self._unfinished.appendleft(oldest)

    def take_stall(self) -> float:
        """Seconds that training has stood still for checkpoints since this was last asked."""
        stall, self._stall_since_asked = self._stall_since_asked, 0.0
        return stall

    def _finish_oldest(self, is_needed: bool) -> None:
        save = self._unfinished.popleft()
        with self._failures(save.step, is_needed):
            with self._standing_still(save.step):
                save.finish()
            self._tell(save)

    def _tell(self, save: CheckpointSave) -> None:
        seconds = time.perf_counter() - save.began
        self._say(
            f"{self._stage} {save.step} | checkpoint {save.path} | visible after {seconds:.1f} s | "
            f"save_stall_s {self._stalls.pop(save.step):.2f}" + (f" | {save.note}" if save.note else "")
        )

    @contextmanager
    def _standing_still(self, step: int) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - began
            self._stalls[step] = self._stalls.get(step, 0.0) + seconds
            self._stall_since_asked += seconds

    @contextmanager
    def _failures(self, step: int, is_needed: bool) -> Iterator[None]:
        """Goes on without a checkpoint where that is wished for and nothing needs it."""
        try:
            yield
        except CheckpointError as error:
            if is_needed or self._recipe.on_save_error == "stop":
                raise
            self._failed += 1
            self._say(f"{self._stage} {step} | NO checkpoint, {self._failed} so far could not be written: {error}")
