"""A rank that dies, stops or hangs: the others end in time, and say which rank it was and where they waited."""

import os
import signal
import time

import pytest

from megatron_sts.exit_codes import LOST_RANK
from tests.faults.disturbed import kill_with, train_disturbed
from tests.ranks import run_until_ended
from tests.tiny import tiny_recipe

TIMEOUT_SECONDS = 4.0
LAYOUTS = {
    "data": ({}, "tensor 0, pipeline 0, data 1"),
    "tensor": ({"tensor": 2}, "tensor 1, pipeline 0, data 0"),
    "pipeline": ({"pipeline": 2}, "tensor 0, pipeline 1, data 0"),
}

NAMED = "SIGKILL, SIGSTOP of a rank in tensor, pipeline, data position: survivors end in time, rank named"


def _lose(root, kind, disturb, lost=1):
    layout, _ = LAYOUTS[kind]
    recipe = tiny_recipe(root, parallel=layout | {"timeout_minutes": TIMEOUT_SECONDS / 60})
    ended = run_until_ended(2, train_disturbed, recipe, lost, "backward", 1, disturb, left=(lost,))
    survivor = ended[1 - lost]
    assert survivor.code == LOST_RANK, survivor.output
    assert survivor.seconds < TIMEOUT_SECONDS + 10
    return survivor.output


@pytest.mark.parametrize(
    ("kind", "number", "lost"),
    [
        pytest.param("tensor", signal.SIGKILL, 1, marks=pytest.mark.fault(NAMED)),
        pytest.param("pipeline", signal.SIGSTOP, 1, marks=pytest.mark.fault(NAMED)),
        *(
            pytest.param(kind, number, lost, marks=pytest.mark.fault(NAMED, everything=True))
            for number in (signal.SIGKILL, signal.SIGSTOP)
            for kind in LAYOUTS
            for lost in (0, 1)
            if (kind, number, lost) not in (("tensor", signal.SIGKILL, 1), ("pipeline", signal.SIGSTOP, 1))
        ),
    ],
)
def test_lost_rank_is_named_by_the_survivors(tmp_path, kind, number, lost):
    output = _lose(tmp_path, kind, kill_with(number), lost)
    place = LAYOUTS[kind][1] if lost else "tensor 0, pipeline 0, data 0"
    assert f"error: rank {lost} ({place}) has not answered for " in output
    assert "(last seen: " in output
    assert f"rank {1 - lost} (" in output
    # A dead neighbour fails the collective; a silent one may be noticed in the midst of it, by either thread.
    assert "waits for it in torch.distributed." in output or "waits for it in megatron.core." in output


def _sleep_for_ever() -> None:
    while os.getppid():
        time.sleep(0.1)


@pytest.mark.fault("a rank that lives but hangs: survivors end, rank named with where it is")
def test_hanging_rank_is_named_with_where_it_is(tmp_path):
    output = _lose(tmp_path, "data", _sleep_for_ever)
    assert "error: rank 1 (tensor 0, pipeline 0, data 1) answers, but is elsewhere: align step 2" in output
    assert "waits for it in torch.distributed." in output
