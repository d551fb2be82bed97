"""Shows that all that tests/gpu runs on a GPU starts, writes and ends in time, over reference kernels on a CPU."""

import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.gpu.runner import run
from tests.gpu.slot import Slot, read_results

ROOT = Path(__file__).resolve().parents[2]
ENGINE = Path(sys.prefix) / "transformer_engine"
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a machine with a GPU runs tests/gpu/run.sh itself")
PARTS = ("first", "speed", "waits", "losses", "ranks", "host", "lengths", "study", "checks", "repeats", "linear")


def _command(*parts: str) -> list[str]:
    return ["bash", str(ROOT / "tests" / "gpu" / "run.sh"), *parts, "--rehearse"]


def _environment(out: Path) -> dict[str, str]:
    return os.environ | {"OUT": str(out), "VIRTUAL_ENV": sys.prefix}


@pytest.mark.skipif(not ENGINE.is_dir(), reason=f"tests/run.sh could not install Transformer Engine into {ENGINE}")
def test_every_part_starts_writes_and_ends_in_its_limit(tmp_path):
    done = subprocess.run(
        _command("slot", "checks", "repeats", "linear"),
        cwd=ROOT,
        env=_environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=400,
    )
    records = read_results(tmp_path / "results.jsonl")
    failed = [record for record in records if record.get("passed") is False]
    assert done.returncode == 0 and not failed, (failed, done.stdout[-4000:], done.stderr[-2000:])
    ended = {record["part"]: record for record in records if record["name"] == "ended"}
    assert tuple(ended) == PARTS
    assert all(record["how"] == "done" and record["seconds"] < record["limit"] for record in ended.values())
    found = {record["part"] for record in records if record["name"] != "ended"}
    assert found == set(PARTS)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["profile.txt", "results.jsonl", "slot.log", "summary.md", "trace.json.gz"]
    summary = (tmp_path / "summary.md").read_text()
    assert summary.startswith("Failed: nothing") and "| both stages over dense bf16: STS, FP8" in summary
    assert "aten::mm" in (tmp_path / "profile.txt").read_text()


def test_a_run_that_is_killed_leaves_what_it_has_found_and_no_process(tmp_path):
    out, scratch = tmp_path / "out", tmp_path / "scratch"
    for directory in (out, scratch):
        directory.mkdir()
    slot = Slot(out, scratch, "rehearsal")
    running = multiprocessing.get_context("fork").Process(target=run, args=([("lengths",), ("linear",)], slot, 100.0))
    running.start()
    for _ in range(1000):
        if not running.is_alive() or any(record["part"] == "linear" for record in read_results(slot.results)):
            break
        time.sleep(0.1)
    (worker,) = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    running.kill()
    running.join()
    records = read_results(slot.results)
    assert any(record["part"] == "linear" for record in records)
    assert not any(record["part"] == "linear" and record["name"] == "ended" for record in records)
    steps = {record["name"]: record["seconds"] for record in records if record["part"] == "lengths"}
    assert steps["ended"] > 0 and len(steps["new"]) == slot.size.lengths
    assert "| lengths | done |" in (out / "summary.md").read_text()
    for _ in range(100):
        if not Path(f"/proc/{worker}").exists():
            break
        time.sleep(0.1)
    assert not Path(f"/proc/{worker}").exists()
