"""One checkpoint on its way to the disk: written by a thread of each rank, then completed and shown by rank 0's."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

from megatron_sts.config import Recipe, checkpoint_root
from megatron_sts.errors import CheckpointError
from megatron_sts.parallel.together import from_all_ranks, rank_zero_does, to_rank_zero, told_by_any
from megatron_sts.train.checkpoint_directory import CheckpointDirectory
from megatron_sts.train.checkpoint_state import StatePart, WrittenPart


class CheckpointSave:
    """A checkpoint of `step` steps of `stage` that is being saved.

    All ranks make it, and call `advance` and `finish`, together; only there do they wait for each other. Each raises
    CheckpointError on all ranks, whichever of them the disk refuses; earlier checkpoints have not been touched then,
    and nothing of this one is left.
    """

    def __init__(
        self,
        recipe: Recipe,
        stage: str,
        step: int,
        state: dict[str, Any],
        copies: bool,
        validation_loss: float | None = None,
    ):
        """state: megatron-core's sharded state dict. copies: whether training goes on and changes it."""
        self.step = step
        self.began = time.perf_counter()
        self.note: str | None = None
        """Once it is visible, on rank 0: what went wrong with those that are not kept any longer."""
        self._directory = CheckpointDirectory(recipe, stage, step, validation_loss)
        self._root = checkpoint_root(recipe)
        self._part = StatePart(state, self._directory.partial)
        self._bytes = sum(from_all_ranks(self._part.bytes))
        try:
            rank_zero_does(lambda: self._directory.make(self._bytes))
        except CheckpointError as error:
            raise self._failure(str(error)) from error
        self._is_written = False
        self._work: Future[Any] = _copy_and_write(self._part, copies)

    @property
    def path(self) -> Path:
        """The directory of the checkpoint once it is visible."""
        return self._directory.final

    @property
    def is_at_work(self) -> bool:
        """Whether this rank is not yet ready to `advance` without waiting."""
        return not self._work.done()

    def advance(self) -> bool:
        """Wait until all ranks have done their present work, and go on to the next; whether it is visible now."""
        error = self._work.exception()
        problem = told_by_any(None if error is None else f"{type(error).__name__}: {error}")
        if problem is not None:
            rank_zero_does(self._directory.discard)
            raise self._failure(problem) from error
        if self._is_written:
            self.note = self._work.result()
            return True
        self._is_written = True
        parts = to_rank_zero(self._work.result())
        self._work = _in_background(lambda: self._show(parts) if parts is not None else None)
        return False

    def finish(self) -> Path:
        """Wait until it is visible; returns its directory."""
        while not self.advance():
            pass
        return self.path

    def wait_alone(self, seconds: float) -> None:
        """Wait for this rank's present work without the other ranks, at most so long."""
        wait([self._work], timeout=seconds)

    def _show(self, parts: list[WrittenPart]) -> str | None:
        self._part.complete([part.results for part in parts])
        self._directory.show({name: entry for part in parts for name, entry in part.entries.items()})
        return self._directory.remove_outdated()

    def _failure(self, problem: str) -> CheckpointError:
        return CheckpointError(
            f"{self.path}: the checkpoint cannot be written ({problem}); it needs {self._bytes:,} bytes in "
            f"{self._root}; the earlier checkpoints are as they were; make room or give the rights, and run the same "
            "command again"
        )


def _copy_and_write(part: StatePart, copies: bool) -> Future[Any]:
    try:
        if copies:
            part.copy()
    except (MemoryError, RuntimeError) as error:
        # Told to the other ranks when they ask for what was written.
        failed: Future[Any] = Future()
        failed.set_exception(error)
        return failed
    return _in_background(part.write)


def _in_background(action: Callable[[], Any]) -> Future[Any]:
    """Do it in a thread that does not keep the process from ending."""
    future: Future[Any] = Future()

    def act() -> None:
        try:
            future.set_result(action())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=act, name="checkpoint", daemon=True).start()
    return future
