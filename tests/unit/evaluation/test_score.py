"""Shows what counts as a right answer, and that the interval resamples pictures, not questions."""

import pytest

from megatron_sts.evaluation.score import bootstrap_interval, normalized


@pytest.mark.parametrize("prediction", ["Two", " two\n", "two.", "TWO ."])
def test_case_space_and_a_trailing_period_do_not_count(prediction: str) -> None:
    assert normalized(prediction) == normalized("two")


@pytest.mark.parametrize("prediction", ["", "two five", "t.wo", "two..", "three"])
def test_anything_else_is_wrong(prediction: str) -> None:
    assert normalized(prediction) != normalized("two")


def test_the_interval_is_wider_where_the_questions_of_a_picture_agree() -> None:
    correct = [number % 20 < 10 for number in range(200)]
    clustered = bootstrap_interval(correct, [number // 10 for number in range(200)])
    independent = bootstrap_interval(correct, list(range(200)))
    # 20 pictures at 50%: a standard error of sqrt(0.25 / 20) = 0.112; 200 questions: 0.035.
    assert clustered == pytest.approx((0.5 - 0.219, 0.5 + 0.219), abs=0.035)
    assert independent == pytest.approx((0.5 - 0.069, 0.5 + 0.069), abs=0.015)


def test_pictures_weigh_as_many_questions_as_they_have() -> None:
    # One of two pictures has three right answers, the other one wrong: 0, 3/4 or 1 by what is drawn.
    low, high = bootstrap_interval([True, True, True, False], ["a", "a", "a", "b"])
    assert (low, high) == (0.0, 1.0)


def test_the_interval_is_the_same_every_time_and_moves_with_the_seed() -> None:
    correct, pictures = [number % 3 == 0 for number in range(60)], list(range(60))
    assert bootstrap_interval(correct, pictures) == bootstrap_interval(correct, pictures)
    assert bootstrap_interval(correct, pictures, resamples=50) != bootstrap_interval(
        correct, pictures, seed=1, resamples=50
    )


def test_what_is_always_right_has_no_width() -> None:
    assert bootstrap_interval([True] * 5, [1, 1, 2, 3, 3]) == (1.0, 1.0)
