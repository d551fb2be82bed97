"""The processes that run jobs: forked from one that has imported everything, each ended at its limit.

A process that has not touched its GPU may be forked, and saves some fifteen seconds of imports. Whether a fork can use
the GPU is tried there; one that cannot starts Python anew.
"""

import ctypes
import gc
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

import torch

from tests.gpu.parts import PARTS
from tests.gpu.slot import Slot

_PR_SET_PDEATHSIG = 1
_ROOT = Path(__file__).resolve().parents[2]


class Worker:
    """A process that runs the jobs it is given, one after another."""

    def __init__(self, slot: Slot, environment: Mapping[str, str]):
        commands, self._commands = os.pipe()
        self.answers, answers = os.pipe()
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _become(slot, environment, commands, answers)
        os.close(commands)
        os.close(answers)

    def give(self, part: str, job: str) -> None:
        """Have it run a job; its end can be read from `answers`."""
        os.write(self._commands, f"{part}/{job}\n".encode())

    def answer(self) -> str:
        """`done` or `failed`, of the job that it was given; `died` where the process has ended instead."""
        return os.read(self.answers, 100).decode().strip() or "died"

    def end(self) -> None:
        """Kill it, and what it has started."""
        for kill in (os.killpg, os.kill):
            # The group is made by the process itself, which may not have come so far.
            try:
                kill(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        for _ in range(50):
            # A process that waits for its GPU's driver may not end at once.
            if os.waitpid(self.pid, os.WNOHANG)[0]:
                break
            time.sleep(0.1)
        os.close(self._commands)
        os.close(self.answers)


class Workers:
    """One process for all timed jobs, which comes back as often as it is ended, and one for each other job."""

    def __init__(self, slot: Slot):
        self._slot = slot
        self._timed: Worker | None = None
        self._others: list[Worker] = []

    def run(self, parts: tuple[str, ...], seconds: float) -> dict[tuple[str, str], str]:
        """Run the jobs of some parts side by side; returns how each ended: done, failed, died, or limit."""
        running: dict[int, tuple[Worker, str, str]] = {}
        for part in parts:
            for name, job in PARTS[part].jobs.items():
                worker = self._worker(job.timed, job.environment())
                worker.give(part, name)
                running[worker.answers] = (worker, part, name)
        ended = {}
        deadline = time.monotonic() + seconds
        while running and (left := deadline - time.monotonic()) > 0:
            for answers in select.select(list(running), [], [], left)[0]:
                worker, part, name = running.pop(answers)
                ended[part, name] = worker.answer()
                if ended[part, name] == "died" or worker is not self._timed:
                    self._drop(worker)
        for worker, part, name in running.values():
            ended[part, name] = "limit"
            self._drop(worker)
        return ended

    def end(self) -> None:
        """Kill all that is left."""
        for worker in [*self._others, *([self._timed] if self._timed else [])]:
            self._drop(worker)

    def _worker(self, timed: bool, environment: Mapping[str, str]) -> Worker:
        if not timed:
            self._others.append(Worker(self._slot, environment))
            return self._others[-1]
        if self._timed is None:
            self._timed = Worker(self._slot, environment)
        return self._timed

    def _drop(self, worker: Worker) -> None:
        worker.end()
        if worker is self._timed:
            self._timed = None
        else:
            self._others.remove(worker)


def serve(slot: Slot, commands: TextIO, answers: int) -> None:
    """Run the jobs that are read, until there are no more."""
    for line in commands:
        part, name = line.strip().split("/")
        try:
            PARTS[part].jobs[name].run(slot)
            answer = "done"
        except Exception as error:
            traceback.print_exc()
            slot.check(part, f"{name} ran to its end", False, error=f"{type(error).__name__}: {error}"[:2000])
            answer = "failed"
        sys.stdout.flush()
        sys.stderr.flush()
        os.write(answers, f"{answer}\n".encode())


def _become(slot: Slot, environment: Mapping[str, str], commands: int, answers: int) -> None:
    """The forked process's own life; does not return."""
    try:
        # Killed with all it has started, and when the process that has forked it is killed.
        os.setpgid(0, 0)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        os.environ.update(environment)
        # Transformer Engine's loader has put libraries into this process, which LD_PRELOAD must come before.
        if "LD_PRELOAD" in environment or not (slot.rehearses or _can_use_device()):
            for descriptor in (commands, answers):
                os.set_inheritable(descriptor, True)
            arguments = [str(commands), str(answers), slot.dumps()]
            os.chdir(_ROOT)
            os.execv(sys.executable, [sys.executable, "-m", "tests.gpu.serve", *arguments])
        if slot.rehearses:
            torch.set_num_threads(1)
        # What was imported stays: no collection walks through it.
        gc.freeze()
        with os.fdopen(commands) as lines:
            serve(slot, lines, answers)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    # Without the interpreter's end: it would wait for threads of the libraries.
    os._exit(0)


def _can_use_device() -> bool:
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return True
    try:
        torch.zeros(1, device="cuda")
        return True
    except Exception as error:
        print(f"a forked process cannot use the GPU ({error}); started anew", flush=True)
        return False
