"""Shows that progress is a bar on a terminal and few lines elsewhere, with the time that is left."""

import io

import pytest
from rich.console import Console

from megatron_sts.evaluation import progress
from megatron_sts.evaluation.progress import shown_if_long, shown_progress


def test_lines_come_at_intervals_and_say_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 4.0, 12.0, 15.0, 30.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    console = Console(file=io.StringIO(), soft_wrap=True)
    with shown_progress("questions", console) as show:
        # 10 had been done before: 20 in 12 seconds, so 40 more take 24.
        for done in (10, 20, 30, 40, 70):
            show(done, 70)
    assert console.file.getvalue().splitlines() == [
        "30 of 70 questions, 0:00:24 left",
        "70 of 70 questions",
    ]


def test_a_terminal_gets_a_bar() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with shown_progress("questions", console) as show:
        show(2, 8)
        show(8, 8)
    assert "8/8" in console.file.getvalue()
    assert "left" in console.file.getvalue()


def test_a_short_job_shows_nothing_and_a_long_one_as_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=io.StringIO(), soft_wrap=True)
    monkeypatch.setattr(progress, "_SECONDS_OF_A_LONG_JOB", 60.0)
    with shown_if_long("records", console) as show:
        show(70, 70)
    assert console.file.getvalue() == ""

    monkeypatch.setattr(progress, "_SECONDS_OF_A_LONG_JOB", 0.0)
    with shown_if_long("records", console) as show:
        show(10, 70)
        show(70, 70)
    assert console.file.getvalue().splitlines() == ["70 of 70 records"]
