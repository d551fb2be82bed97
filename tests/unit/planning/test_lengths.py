"""Shows what rounding sequence lengths costs and spares by the plan, and that it does not enter a mean sample."""

from megatron_sts.planning.forecast import forecast
from megatron_sts.planning.lengths import STEPS, rounded_lengths
from megatron_sts.planning.text import forecast_text


def test_rounding_leaves_few_lengths_for_some_percent_of_positions(make):
    recipe = make(precision="bf16")
    found = rounded_lengths(recipe, recipe.stage("tune"), visual_tokens=576)
    assert found.multiple == 64
    # Steps of 576 visual tokens and up to 2,048 in all have 24 multiples of 64 above their images at most.
    assert 5 < found.distinct < 24 and 200 < found.distinct_unrounded < STEPS
    # In the mean half a multiple, of steps of above 1,400.
    assert 0.01 < found.more_positions < 32 / 1400


def test_nothing_is_rounded_in_fp32_or_where_samples_are_packed(make):
    fp32 = make(precision="fp32")
    found = rounded_lengths(fp32, fp32.stage("align"), visual_tokens=144)
    assert found.distinct == found.distinct_unrounded and found.more_positions == 0
    packed = make(tune__data__packing=True)
    assert rounded_lengths(packed, packed.stage("tune"), visual_tokens=576) is None


def test_steps_of_like_length_are_shorter_and_pay_more(make):
    recipe = make(tune__data__group_by_length=True)
    mixed = make()
    found, other = (rounded_lengths(one, one.stage("tune"), visual_tokens=576) for one in (recipe, mixed))
    assert found.more_positions > 2 * other.more_positions


def test_it_is_told_beside_the_mean_sample(make):
    found = forecast(make(length_rounding=256))
    assert found.stages[1].work.length == 916
    assert "lengths of steps in multiples of 256 (length_rounding)" in forecast_text(found)
    assert "length_rounding" not in forecast_text(forecast(make(length_rounding=1)))
