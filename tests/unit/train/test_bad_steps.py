"""What counts as a spike, from figures worked out by hand."""

from megatron_sts.config import LossSpikeConfig
from megatron_sts.train.bad_steps import Judgement, SpikeGuard, StepJudge

NAN, INFINITE = float("nan"), float("inf")


def _judge(action: str = "drop", history: tuple[tuple[float, float], ...] = ()) -> StepJudge:
    return StepJudge(SpikeGuard(LossSpikeConfig(sigma=2, window=2, action=action), history))


def test_what_is_not_finite_is_dropped_with_and_without_a_guard():
    for judge in (StepJudge(), _judge()):
        assert judge.judge(NAN, 1.0) == Judgement("loss nan is not finite (gradient norm 1)", dropped=True)
        assert judge.judge(1.0, INFINITE) == Judgement("gradient norm inf is not finite (loss 1)", dropped=True)
        assert judge.judge(1.0, 1.0) is None


def test_a_spike_is_above_the_mean_by_more_than_sigma_deviations():
    # Losses 1 and 3: mean 2, deviation 1, so the limit is 4. Gradient norms 10 and 10: the limit is 10.
    history = ((1.0, 10.0), (3.0, 10.0))
    assert _judge(history=history).judge(4.0, 10.0) is None
    found = _judge(history=history).judge(4.01, 10.0)
    assert found is not None and found.dropped
    spike = "loss 4.01 is a spike: more than 2 deviations (1) above 2, the mean of the last 2 good steps"
    assert found.problem == f"{spike} (gradient norm 10)"
    found = _judge("warn", history).judge(0.0, 10.5)
    assert found is not None and not found.dropped and found.problem.startswith("gradient norm 10.5 is a spike")
    assert found.problem.endswith(" (loss 0)")


def test_nothing_is_a_spike_before_the_window_is_full_and_spikes_do_not_enter_it():
    judge = _judge()
    assert judge.judge(1.0, 1.0) is None
    assert judge.judge(3.0, 1.0) is None
    for _ in range(3):
        assert judge.judge(9.0, 1.0) is not None
    assert judge.judge(3.0, 1.0) is None
    # Now 3 and 3: the deviation is 0.
    assert judge.judge(3.1, 1.0) is not None
