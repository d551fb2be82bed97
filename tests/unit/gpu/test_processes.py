"""Shows that a job that hangs, dies or raises costs its own part alone, and that timed jobs share a process."""

import os
import time

import pytest

from tests.gpu import processes
from tests.gpu.parts import Job, Part
from tests.gpu.slot import Slot, read_results


def _fail(slot: Slot) -> None:
    raise ValueError("no such kernel")


def _note(slot: Slot) -> None:
    slot.record("noted", "process", pid=os.getpid(), asked=os.environ.get("ASKED"))


@pytest.fixture
def slot(tmp_path, monkeypatch):
    jobs = {
        "mixed": {
            "hangs": Job(lambda slot: time.sleep(60), timed=True),
            "dies": Job(lambda slot: os._exit(3)),
            "fails": Job(_fail),
            "ends": Job(_note, environment=lambda: {"ASKED": "yes"}),
        },
        "next": {"run": Job(_note, timed=True)},
    }
    monkeypatch.setattr(processes, "PARTS", {name: Part(name, 1.0, of_part) for name, of_part in jobs.items()})
    return Slot(tmp_path, tmp_path, "rehearsal")


def test_each_job_ends_by_itself_or_at_the_limit_and_the_next_part_runs(slot):
    workers = processes.Workers(slot)
    try:
        ended = workers.run(("mixed",), 2.0)
        assert {name: how for (_, name), how in ended.items()} == {
            "hangs": "limit",
            "dies": "died",
            "fails": "failed",
            "ends": "done",
        }
        # The timed process was ended with its job; another takes its place, and stays.
        assert workers.run(("next",), 20.0) == workers.run(("next",), 20.0) == {("next", "run"): "done"}
    finally:
        workers.end()
    records = read_results(slot.results)
    (failed,) = (record for record in records if record.get("passed") is False)
    assert failed["error"] == "ValueError: no such kernel"
    aside, first, second = (record for record in records if record["part"] == "noted")
    assert aside["asked"] == "yes" and first["asked"] is None
    assert first["pid"] == second["pid"] != aside["pid"] and not os.path.exists(f"/proc/{first['pid']}")
