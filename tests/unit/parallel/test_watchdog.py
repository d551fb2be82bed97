"""Where a rank is said to be, from the frames of its main thread."""

import sys

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
