"""Shows what rates measured rises give: probabilities that average to alpha, none for harmful layers, even groups."""

import math
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from megatron_sts.config import SkipConfig
from megatron_sts.errors import ConfigError
from megatron_sts.sts.redundancy import expected_rise, largest_alpha, redundancy_probabilities, shares, unprotected


def skip(alpha: float, **others: object) -> SkipConfig:
    return SkipConfig.model_validate({"alpha": alpha, "by": "redundancy", **others})


@given(
    rises=st.lists(st.floats(-0.5, 9.0), min_size=1, max_size=40),
    alpha=st.floats(0.0, 1.0),
    protect_above=st.floats(0.01, 2.0),
    groups=st.integers(1, 6),
    never=st.sets(st.integers(0, 39), max_size=4),
)
def test_rates_are_probabilities_that_average_to_alpha(rises, alpha, protect_above, groups, never):
    layers = len(rises)
    assume(groups <= layers)
    ends = [layers * number // groups for number in range(groups + 1)]
    parts = [range(start, end) for start, end in pairwise(ends)]
    config = skip(alpha, protect_above=protect_above, never_skip=sorted(number for number in never if number < layers))
    largest = largest_alpha(rises, config, parts)
    if alpha > largest + 1e-9:
        with pytest.raises(ConfigError, match=rf"largest alpha possible is {largest:.4g}"):
            redundancy_probabilities(rises, config, parts)
        return
    found = redundancy_probabilities(rises, config, parts)
    assert all(0.0 <= one <= 1.0 for one in found)
    assert math.fsum(found) / layers == pytest.approx(alpha, abs=1e-8)
    for layer, rise in enumerate(rises):
        if rise > protect_above or layer in config.never_skip:
            assert found[layer] == 0.0
    for part in parts:
        # The same count for all groups, and inside of one never more for a layer that harms more.
        assert math.fsum(found[layer] for layer in part) == pytest.approx(alpha * layers / groups, abs=1e-7)
        free = sorted((layer for layer in part if layer in unprotected(rises, config)), key=lambda one: rises[one])
        assert all(found[low] >= found[high] - 1e-12 for low, high in pairwise(free))


def test_a_layer_is_skipped_half_as_often_where_it_rises_by_a_tenth_of_ln_2_more():
    rises = (0.1, 0.1 + 0.1 * math.log(2), 3.0, 0.1 + 0.1 * math.log(4))
    # Weights 4, 2 and 1 share 4 x 0.35 = 1.4 layers.
    assert redundancy_probabilities(rises, skip(0.35), [range(4)]) == pytest.approx((0.8, 0.4, 0.0, 0.2))
    assert expected_rise((0.8, 0.4, 0.0, 0.2), (0.1, 0.2, 3.0, 0.4)) == pytest.approx(0.24)


def test_what_exceeds_one_goes_to_the_others():
    # Of 2 layers' worth, weights 10, 1, 1: the first would have 1.67, so 1 is left for the other two.
    assert shares([10.0, 1.0, 1.0], 2.0) == pytest.approx([1.0, 0.5, 0.5])
    assert shares([5.0], 1.0) == [1.0] and shares([], 0.0) == []


def test_a_rise_below_0_is_one_of_0():
    found = redundancy_probabilities((-0.3, 0.0, -9.0, 0.0), skip(0.5), [range(4)])
    assert found == pytest.approx((0.5,) * 4)


def test_layers_far_apart_still_share_what_is_left():
    found = redundancy_probabilities((0.0, 8.0, 300.0, 400.0), skip(0.5, protect_above=1e3), [range(4)])
    assert found[0] == 1.0 and sum(found) == pytest.approx(2.0) and found[1] >= found[2] == found[3]


def test_the_group_that_cannot_share_the_count_is_named():
    rises = (3.0, 0.9, 0.1, 0.1, 0.1, 0.1)
    with pytest.raises(ConfigError, match=r"group of layers 0 to 1 has 0 of them, and all 3 groups.*possible is 0;"):
        redundancy_probabilities(rises, skip(0.2), [range(2), range(2, 4), range(4, 6)])
