"""Python's collections of unused memory, at the same step on every rank, where each would make all others wait."""

import gc
from types import TracebackType
from typing import Self

_STEPS_BETWEEN_FULL = 100


class CollectionsByStep:
    """While it lasts nothing is collected but by `collect`.

    What is there when it begins, samples and model, stays as long as the stage, and no collection walks through it.
    """

    def __init__(self, step: int):
        """step: steps done, the same on every rank."""
        self._step = step

    def __enter__(self) -> Self:
        self._was_enabled = gc.isenabled()
        gc.freeze()
        gc.disable()
        return self

    def collect(self) -> None:
        """Once a step: what was made since the last one; after every so many steps everything."""
        self._step += 1
        gc.collect(2 if self._step % _STEPS_BETWEEN_FULL == 0 else 1)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._was_enabled:
            gc.enable()
