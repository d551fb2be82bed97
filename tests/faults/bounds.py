"""What refusing something hostile may cost."""

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def within(seconds: float, kibibytes: int) -> Iterator[None]:
    """The body takes less time than that, and the process's peak of memory grows by less."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < kibibytes
