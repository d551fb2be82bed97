"""Shows that skip probabilities and kept visual tokens are those worked out by hand from the paper's formulas."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_sts.config import SkipConfig
from megatron_sts.errors import ConfigError
from megatron_sts.sts.schedule import kept_visual_tokens, skip_probabilities, uniform_indices


def probabilities(layers: int, progress: float, alpha: float, epsilon: float = 0.0, schedule: str = "sts"):
    skip = SkipConfig.model_validate({"alpha": alpha, "epsilon": epsilon, "schedule": schedule})
    return skip_probabilities(layers, progress, skip)


def test_start_of_four_layers_tilted_to_the_deep_ones():
    # 0.5 * (1 + 0.5 * t) with t = -1, -1/3, 1/3, 1.
    assert probabilities(4, 0.0, 0.5, 0.5) == pytest.approx((0.25, 5 / 12, 7 / 12, 0.75), abs=1e-12)


def test_decay_is_quadratic_in_what_is_left():
    # Half-way the factor is (1 - 0.5)^2 = 1/4, at nine tenths 1/100.
    assert probabilities(4, 0.5, 0.5, 0.5) == pytest.approx((0.0625, 5 / 48, 7 / 48, 0.1875), abs=1e-12)
    assert probabilities(3, 0.9, 0.8) == pytest.approx((0.008, 0.008, 0.008), abs=1e-12)


def test_constant_schedule_does_not_fade():
    for progress in (0.0, 0.5, 1.0):
        assert probabilities(4, progress, 0.5, 0.5, "constant") == probabilities(4, 0.0, 0.5, 0.5)


def test_progressive_layer_drop_rises_from_all_layers_to_its_rate():
    # Progressive layer drop skips layer l of L (from 1) with l / L (1 - theta(t)); here L = 3 and
    # 1 - theta = 2 L / (L + 1) alpha = 0.45 at the end, so that the mean is alpha.
    assert probabilities(3, 0.0, 0.3, schedule="pld") == (0.0, 0.0, 0.0)
    assert probabilities(3, 1.0, 0.3, schedule="pld") == pytest.approx((0.15, 0.3, 0.45), abs=1e-12)
    # After a hundredth of the stage gamma t is 1.
    share = 1 - math.exp(-1)
    assert probabilities(3, 0.01, 0.3, schedule="pld") == pytest.approx((0.15 * share, 0.3 * share, 0.45 * share))


def test_negative_epsilon_mirrors_the_depth():
    deep = probabilities(5, 0.3, 0.4, 0.7)
    assert probabilities(5, 0.3, 0.4, -0.7) == pytest.approx(deep[::-1], abs=1e-12)


@pytest.mark.parametrize(("epsilon", "expected"), [(1.0, (0.0, 0.5, 1.0)), (-1.0, (1.0, 0.5, 0.0))])
def test_full_tilt_reaches_zero_and_twice_alpha(epsilon, expected):
    assert probabilities(3, 0.0, 0.5, epsilon) == pytest.approx(expected, abs=1e-12)


def test_nothing_is_skipped_at_the_end():
    assert probabilities(6, 1.0, 0.5, 1.0) == (0.0,) * 6


def test_a_single_layer_has_no_tilt():
    assert probabilities(1, 0.5, 0.4, 0.9) == pytest.approx((0.1,))


@given(
    layers=st.integers(1, 80),
    progress=st.floats(0, 1),
    epsilon=st.floats(-1, 1),
    share=st.floats(0, 1),
)
def test_depth_averages_to_one_and_all_are_probabilities(layers, progress, epsilon, share):
    alpha = share / (1 + abs(epsilon))
    found = probabilities(layers, progress, alpha, epsilon)
    assert all(0.0 <= probability <= 1.0 for probability in found)
    assert sum(found) / layers == pytest.approx(alpha * (1 - progress) ** 2, abs=1e-9)


@pytest.mark.parametrize("epsilon", [0.6, -0.6])
def test_probability_above_one_is_refused_with_the_largest_alpha(epsilon):
    probabilities(4, 0.0, 0.625, epsilon)
    with pytest.raises(ConfigError, match=r"skip\.alpha is 0\.7 .* 1\.12 is above 1.* largest alpha here is 0\.625"):
        probabilities(4, 0.0, 0.7, epsilon)


def test_progressive_layer_drop_takes_no_tilt_and_a_smaller_alpha():
    # L = 3: the deepest layer is skipped 6 / 4 times as often as the mean.
    with pytest.raises(ConfigError, match=r"skip\.alpha is 0\.7 .* 1\.05 is above 1.* largest alpha here is 0\.6666"):
        probabilities(3, 0.0, 0.7, schedule="pld")
    with pytest.raises(ConfigError, match=r"skip\.epsilon is 0\.5 with schedule 'pld'"):
        probabilities(3, 0.0, 0.3, 0.5, "pld")


@pytest.mark.parametrize(("alpha", "epsilon", "named"), [(-0.1, 0, "alpha is -0.1"), (0.1, 1.5, "epsilon is 1.5")])
def test_values_out_of_range_are_refused(alpha, epsilon, named):
    with pytest.raises(ConfigError, match=named):
        probabilities(4, 0.0, alpha, epsilon)


@pytest.mark.parametrize(
    ("visual_tokens", "keep_ratio", "kept"),
    [
        (576, 0.5, 288),
        (576, 0.25, 144),
        (576, 1.0, 576),
        (9, 0.5, 5),  # 4.5 goes up
        (9, 0.49, 4),  # 4.41
        (7, 0.25, 2),  # 1.75
        (3, 0.5, 2),  # 1.5 goes up
        (5, 0.5, 3),  # 2.5 goes up, not to the even number
        (10, 0.04, 1),  # 0.4: never none
        (1, 0.5, 1),
    ],
)
def test_kept_tokens_round_half_up_and_never_to_none(visual_tokens, keep_ratio, kept):
    assert kept_visual_tokens(visual_tokens, keep_ratio) == kept


@pytest.mark.parametrize("keep_ratio", [0.0, -0.5, 1.01])
def test_ratio_out_of_range_is_refused(keep_ratio):
    with pytest.raises(ConfigError, match="keep_ratio"):
        kept_visual_tokens(576, keep_ratio)


@pytest.mark.parametrize(
    ("visual_tokens", "kept", "indices"),
    [
        (8, 4, (0, 2, 4, 6)),  # the paper's figure
        (9, 4, (0, 2, 4, 6)),  # 0, 2.25, 4.5, 6.75
        (9, 5, (0, 1, 3, 5, 7)),  # 0, 1.8, 3.6, 5.4, 7.2
        (4, 4, (0, 1, 2, 3)),
        (5, 1, (0,)),
        (576, 144, tuple(range(0, 576, 4))),
    ],
)
def test_uniform_strides_over_the_tokens(visual_tokens, kept, indices):
    assert uniform_indices(visual_tokens, kept) == indices


@given(st.integers(1, 1200).flatmap(lambda total: st.tuples(st.just(total), st.integers(1, total))))
def test_uniform_indices_ascend_within_the_tokens(sizes):
    visual_tokens, kept = sizes
    indices = uniform_indices(visual_tokens, kept)
    assert len(indices) == kept
    assert indices[0] == 0
    assert indices[-1] < visual_tokens
    steps = [after - before for before, after in pairwise(indices)]
    assert all(step in (visual_tokens // kept, visual_tokens // kept + 1) for step in steps)
