"""How far a long job is, and how much time is left; on standard error, where no other console is given."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_SECONDS_BETWEEN_LINES = 10.0
_SECONDS_OF_A_LONG_JOB = 5.0


@contextmanager
def shown_progress(what: str, console: Console | None = None) -> Iterator[Callable[[int, int], None]]:
    """Gives a function that is told how many of how many `what` are done.

    On a terminal: a bar. Elsewhere: a line every ten seconds, and one at the end.
    """
    console = console or Console(stderr=True, soft_wrap=True, highlight=False)
    if not console.is_terminal:
        yield _lines(what, console)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def shown_if_long(what: str, console: Console | None = None) -> Iterator[Callable[[int, int], None]]:
    """As `shown_progress`, but nothing is shown of what ends within five seconds."""
    began = time.monotonic()
    show: Callable[[int, int], None] | None = None
    with ExitStack() as stack:

        def show_later(done: int, total: int) -> None:
            nonlocal show
            if show is None and time.monotonic() - began > _SECONDS_OF_A_LONG_JOB:
                show = stack.enter_context(shown_progress(what, console))
            if show is not None:
                show(done, total)

        yield show_later


def _lines(what: str, console: Console) -> Callable[[int, int], None]:
    began = said = time.monotonic()
    first: int | None = None

    def show(done: int, total: int) -> None:
        nonlocal said, first
        # What an earlier run had done took none of this run's time.
        first = done if first is None else first
        now = time.monotonic()
        if done < total and now - said < _SECONDS_BETWEEN_LINES:
            return
        said = now
        left = ""
        if first < done < total:
            seconds = (now - began) / (done - first) * (total - done)
            left = f", {timedelta(seconds=round(seconds))} left"
        console.print(f"{done} of {total} {what}{left}", markup=False)

    return show
