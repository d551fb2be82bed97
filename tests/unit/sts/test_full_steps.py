"""Shows that full steps are as many as their share says, evenly spread, and the same wherever they are asked for."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_sts.sts.full_steps import is_full_step


def full_steps(share: float, steps: int, seed: int = 1, stage: str = "tune") -> list[int]:
    return [step for step in range(steps) if is_full_step(seed, stage, share, step)]


@settings(deadline=None)
@given(st.floats(0.0, 1.0), st.integers(0, 2**32 - 1), st.integers(1, 300))
def test_any_run_of_steps_has_its_share_to_within_one(share, seed, steps):
    assert abs(len(full_steps(share, steps, seed)) - share * steps) < 1 + 1e-6


@pytest.mark.parametrize(("share", "apart"), [(0.1, {10}), (0.25, {4}), (1.0, {1})])
def test_full_steps_are_evenly_spread(share, apart):
    found = full_steps(share, 200)
    assert {later - earlier for earlier, later in pairwise(found)} == apart


def test_no_share_has_no_full_step():
    assert not full_steps(0.0, 100)


def test_seeds_and_stages_begin_at_steps_of_their_own():
    first = {full_steps(0.1, 20, seed, stage)[0] for seed in range(10) for stage in ("align", "tune")}
    assert len(first) > 5
