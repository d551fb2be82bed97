"""Ranks wait for long work of rank 0 as long as it gets on, and not for ever where it does not."""

import os
import signal
import time
from collections.abc import Callable
from unittest import mock

import pytest
import torch.distributed as dist

from megatron_sts.config import ParallelConfig
from megatron_sts.errors import DataError
from megatron_sts.exit_codes import LOST_RANK
from megatron_sts.parallel import together, watchdog
from megatron_sts.parallel.groups import start_groups
from megatron_sts.parallel.together import rank_zero_works
from megatron_sts.parallel.watchdog import Watchdog
from tests.ranks import Ended, run_ranks, run_until_ended

TIMEOUT_SECONDS = 1.0


def _works(work: Callable[[Callable[[], None]], None]) -> int:
    place = start_groups(ParallelConfig(timeout_minutes=TIMEOUT_SECONDS / 60), seed=1)
    with mock.patch.object(watchdog, "_GRACE_SECONDS", 0.0), Watchdog(place, TIMEOUT_SECONDS):
        try:
            rank_zero_works(work, TIMEOUT_SECONDS)
        except DataError as error:
            print(f"error: {error}; met by all: {error.met_by_all}")
            return 2
    return 0


def _get_on(gets_on: Callable[[], None]) -> None:
    for _ in range(5):
        time.sleep(0.5 * TIMEOUT_SECONDS)
        gets_on()


def _fail(gets_on: Callable[[], None]) -> None:
    raise DataError("record 7 is bad")


def _die(gets_on: Callable[[], None]) -> None:
    gets_on()
    os.kill(os.getpid(), signal.SIGKILL)


def _hang(gets_on: Callable[[], None]) -> None:
    gets_on()
    time.sleep(60)


def _ended(work: Callable[[Callable[[], None]], None], left: tuple[int, ...] = ()) -> list[Ended]:
    return run_until_ended(2, _works, work, left=left)


def test_work_may_take_longer_than_ranks_wait_for_each_other():
    ended = _ended(_get_on)
    assert [each.code for each in ended] == [0, 0], ended
    # The others come back with the first rank, not before.
    assert ended[1].seconds > 2.5 * TIMEOUT_SECONDS


def test_its_error_is_raised_by_all():
    ended = _ended(_fail)
    assert [(each.code, each.output) for each in ended] == [(2, "error: record 7 is bad; met by all: True\n")] * 2


@pytest.mark.parametrize(("stop", "said"), [(_die, "has not answered for"), (_hang, "answers, but is elsewhere")])
def test_a_first_rank_that_stops_is_named_by_the_others(stop, said):
    survivor = _ended(stop, left=(0,))[1]
    assert survivor.code == LOST_RANK, survivor.output
    assert f"error: rank 0 (tensor 0, pipeline 0, data 0) {said}" in survivor.output
    assert survivor.seconds < 2 * TIMEOUT_SECONDS + 10


def _work_without_store() -> list[str]:
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    client = dist.TCPStore("127.0.0.1", server.port, is_master=False)
    done = []

    def work(gets_on: Callable[[], None]) -> None:
        nonlocal server
        del server
        gets_on()
        done.append("all of it")

    with mock.patch.object(together, "_get_default_store", return_value=client):
        rank_zero_works(work, TIMEOUT_SECONDS)
    return done


def test_work_is_done_though_nobody_can_be_told_of_it():
    assert run_ranks(1, _work_without_store) == [["all of it"]]
