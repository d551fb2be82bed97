"""Shows which of the measured plans is recommended, and that a loss which falls is no evidence of what is redundant."""

from megatron_sts.sts.probe import Measured, Trial, best_within, trusted


def measured(rises: dict[float, float], error: float = 0.01, by: str = "depth") -> list[Measured]:
    """Visual MLPs at some rates, with what each raises the loss by; a rate saves as much of the FLOPs."""
    return [Measured(Trial(by, "visual", alpha, 1.0), rise, error, alpha) for alpha, rise in rises.items()]


def test_the_plan_that_saves_most_within_the_budget_is_recommended():
    found = measured({0.25: 0.02, 0.5: 0.2, 0.75: 0.3})
    assert best_within(0.25, found) == 1
    assert best_within(0.01, found) is None
    # Below 0 within noise is no harm.
    assert best_within(0.01, measured({0.25: -0.015})) == 0


def test_plans_that_improve_the_loss_and_higher_rates_of_their_kind_are_not_trusted():
    found = measured({0.25: 0.02, 0.5: -0.1, 0.75: 0.1}) + measured({0.75: 0.1}, by="redundancy")
    assert [one.improves for one in found] == [False, True, False, False]
    assert trusted(found) == [True, False, False, True]
    assert best_within(0.25, found) == 3
    assert best_within(0.05, found) == 0
    # The order in which they were measured decides nothing.
    assert trusted(found[::-1]) == [True, False, False, True]


def test_fewer_visual_tokens_kept_are_a_higher_rate():
    kept = [
        Measured(Trial(None, None, 0.0, ratio), rise, 0.01, 1 - ratio) for ratio, rise in ((0.5, -1.0), (0.25, 0.1))
    ]
    assert best_within(0.25, kept) is None


def test_one_sample_is_no_evidence_of_an_improvement():
    (one,) = measured({0.5: -1.0}, error=float("inf"))
    assert not one.improves
