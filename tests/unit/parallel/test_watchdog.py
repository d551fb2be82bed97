"""Where a rank is said to be, from the frames of its main thread."""

import sys
from types import FrameType

import pytest
import torch.distributed as dist

from megatron_sts.parallel.watchdog import _collective_of, _place_in_code


def test_a_frame_outside_of_collectives_does_not_wait():
    assert _place_in_code(sys._getframe()) == (False, "code of no model")


def test_an_error_in_a_collective_is_told_from_one_elsewhere():
    with pytest.raises(TypeError, match="Invalid function argument") as failure:
        dist.all_reduce(None)
    assert _collective_of(failure.value.__traceback__) == "torch.distributed.all_reduce"
    with pytest.raises(ZeroDivisionError) as other:
        _ = 1 / 0
    assert _collective_of(other.value.__traceback__) is None


def _frame_in(module: str) -> FrameType:
    names = {"__name__": module, "look": sys._getframe}
    exec("def _sum():\n    return look()", names)
    return names["_sum"]()


def test_a_wait_for_the_device_is_one_for_the_ranks_whose_kernels_it_waits_for():
    assert _place_in_code(_frame_in("megatron_sts.train.step")) == (
        True,
        "a wait for the device called from <string>:2 _sum",
    )
    assert _place_in_code(_frame_in("megatron_sts.model.mllm")) == (False, "<string>:2 _sum")
