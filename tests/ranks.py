"""The one way in which tests start ranks: processes forked from the warm pytest process, joined by gloo.

A fork has every import done, so two ranks take well under a second; a real torchrun takes ten.
"""

import ctypes
import gc
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

# Imported here so that every forked rank finds them loaded.
import megatron_sts.train.stages  # noqa: F401

_PR_SET_PDEATHSIG = 1
_FORK = multiprocessing.get_context("fork")


class RankFailed(AssertionError):
    """A rank raised; the message holds its traceback."""


def run_ranks(world_size: int, function: Callable[..., Any], *arguments: Any, timeout: float = 180.0) -> list[Any]:
    """Call `function(*arguments)` on each of `world_size` gloo ranks; returns what they return, by rank.

    The first rank that raises ends the others; so does the timeout, in seconds.
    """
    with tempfile.TemporaryDirectory() as directory:
        store = str(Path(directory) / "store")
        pipes, processes = [], []
        for rank in range(world_size):
            receiver, sender = _FORK.Pipe(duplex=False)
            process = _FORK.Process(target=_rank, args=(rank, world_size, store, sender, function, arguments))
            process.start()
            sender.close()
            pipes.append(receiver)
            processes.append(process)
        try:
            return _collect(pipes, processes, time.monotonic() + timeout)
        finally:
            for process in processes:
                if process.is_alive():
                    os.killpg(process.pid, signal.SIGKILL)
                process.join()


@dataclass(frozen=True)
class Ended:
    """How a rank ended: exit code (minus the number of the signal that ended it), what it wrote, after how long."""

    code: int
    output: str
    seconds: float


def run_until_ended(
    world_size: int, function: Callable[..., int], *arguments: Any, timeout: float = 60.0, left: tuple[int, ...] = ()
) -> list[Ended]:
    """Call `function(*arguments)`, which returns an exit code, on each rank, and see how each ends.

    left: ranks that nobody waits for, as one that was stopped for good; they are killed in the end.
    """
    with tempfile.TemporaryDirectory() as directory:
        outputs = [Path(directory) / f"rank{rank}" for rank in range(world_size)]
        began = time.monotonic()
        processes = []
        for rank in range(world_size):
            call = (_noted, (outputs[rank], function, arguments))
            processes.append(
                _FORK.Process(target=_rank, args=(rank, world_size, str(Path(directory) / "store"), None, *call))
            )
            processes[-1].start()
        try:
            seconds = []
            for rank, process in enumerate(processes):
                process.join(0 if rank in left else max(0.0, began + timeout - time.monotonic()))
                seconds.append(time.monotonic() - began)
        finally:
            for process in processes:
                if process.is_alive():
                    os.killpg(process.pid, signal.SIGKILL)
                process.join()
        return [
            Ended(process.exitcode, output.read_text() if output.exists() else "", taken)
            for process, output, taken in zip(processes, outputs, seconds, strict=True)
        ]


def _noted(output: Path, function: Callable[..., int], arguments: tuple[Any, ...]) -> int:
    with output.open("w", buffering=1) as file:
        sys.stdout = sys.stderr = file
        try:
            return function(*arguments)
        except BaseException:
            traceback.print_exc(file=file)
            return 1


def _collect(pipes: list[Any], processes: list[Any], deadline: float) -> list[Any]:
    results: dict[int, Any] = {}
    while len(results) < len(pipes):
        waiting = {pipe: rank for rank, pipe in enumerate(pipes) if rank not in results}
        ready = multiprocessing.connection.wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            raise RankFailed(f"ranks {sorted(waiting.values())} did not end in time")
        for pipe in ready:
            rank = waiting[pipe]
            try:
                failure, results[rank] = pipe.recv()
            except EOFError:
                processes[rank].join()
                raise RankFailed(f"rank {rank} ended with exit code {processes[rank].exitcode}") from None
            if failure is not None:
                raise RankFailed(f"rank {rank} raised\n{failure}")
    return [results[rank] for rank in range(len(pipes))]


def _rank(
    rank: int, world_size: int, store: str, sender: Any, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    # What the pytest process had made stays: without this, a collection in the rank takes half a second.
    gc.freeze()
    # torch makes a forked process's thread pool on first use, and not safely where two threads are the first.
    torch.set_num_threads(1)
    # A rank, and what it starts in turn, ends with the pytest process also where that is killed.
    os.setpgrp()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank), GLOO_SOCKET_IFNAME="lo")
    try:
        dist.init_process_group("gloo", store=dist.FileStore(store, world_size), rank=rank, world_size=world_size)
        result = function(*arguments)
        if sender is None:
            os._exit(result)
        sender.send((None, result))
    except BaseException:
        if sender is None:
            os._exit(1)
        sender.send((traceback.format_exc(), None))
    sender.close()
    # Without the interpreter's end: it would wait for gloo's threads.
    os._exit(0)
